"""Costs of single sites, kept on disk: measured once for a Program, a graft, its options, the data and this code.

A site's cost is written as soon as it is known, so that a ranking that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.content_digest import batches_digest, code_digest, program_digest, text_digest
from compiler.kept_work import kept_folder, write_whole
from compiler.rewriting import option_values
from compiler.selection.ranking import SiteCost, cost_to_json, costs_from_json

if TYPE_CHECKING:
    from compiler.evidence.probes.recall import RecallProbe
    from compiler.program import Program
    from compiler.rewriting import Graft, PassContext

KIND, FILE_NAME = "rankings", "costs.json"
NOT_OPTIONS_OF_A_STAND_IN = ("layers", "rank")


class RankingCache:
    """The costs that are known for a digest."""

    def __init__(self, digest: str) -> None:
        self._path = kept_folder(KIND, digest) / FILE_NAME
        self.known: dict[str, SiteCost] = _read(self._path)

    def add(self, cost: SiteCost) -> None:
        """Keep one more."""
        self.known[cost.node] = cost
        write_whole(self._path, self._write)

    def _write(self, path: Path) -> None:
        path.write_text(json.dumps([cost_to_json(one) for one in self.known.values()]), encoding="utf-8")


def ranking_digest(
    graft: Graft, program: Program, context: PassContext, probes: Sequence[RecallProbe], reach: int
) -> str:
    """Names everything that a site's cost depends on."""
    values = option_values(graft)
    options = {name: str(value) for name, value in values.items() if name not in NOT_OPTIONS_OF_A_STAND_IN}
    asked = [str(context.seed), str(reach), *(probe.name for probe in probes)] if probes else []
    return text_digest(
        program_digest(program),
        graft.name,
        json.dumps(options, sort_keys=True),
        batches_digest(context.data.ranking),
        *asked,
        code_digest((type(graft), *map(type, probes))),
    )


def _read(path: Path) -> dict[str, SiteCost]:
    """Costs by node; none where the file is missing or not what this code writes."""
    try:
        return costs_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
