"""Costs of single sites, kept on disk: measured once for a Program, a graft, its options, the data and this code.

A site's cost is written as soon as it is known, so that a ranking that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.content_digest import batches_digest, program_digest, text_digest
from compiler.kept_work import kept_folder, write_whole
from compiler.rewriting import option_values
from compiler.selection.ranking import SiteCost, cost_to_json, costs_from_json

if TYPE_CHECKING:
    from compiler.evidence.probes.recall import RecallProbe
    from compiler.program import Program
    from compiler.rewriting import Graft, PassContext

KIND, FILE_NAME = "rankings", "costs.json"
NOT_OPTIONS_OF_A_STAND_IN = ("layers", "rank")
NO_PART = ("cli", "report", "frontends", "backends", "healing")
"""Folders of this code that a cost does not depend on, but through the Program."""
PARTS = ("compiler.passes.", "regraft_plugin_")
"""How modules with stand-ins are called that are not below the core's folder: built-in passes and plugin files."""


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
        _code_digest((type(graft), *map(type, probes))),
    )


def _code_digest(classes: Sequence[type[Any]]) -> str:
    """Of this code, of the files that define `classes`, and of plugins that are files."""
    import torch

    import compiler

    core = Path(compiler.__file__).parent
    files = {file for file in core.rglob("*.py") if file.relative_to(core).parts[0] not in NO_PART}
    files |= {Path(inspect.getfile(one)) for one in classes}
    loaded = (module.__file__ for name, module in sys.modules.items() if name.startswith(PARTS))
    files |= {Path(file) for file in loaded if file}
    return text_digest(torch.__version__, *(file.read_text(encoding="utf-8") for file in sorted(files)))


def _read(path: Path) -> dict[str, SiteCost]:
    """Costs by node; none where the file is missing or not what this code writes."""
    try:
        return costs_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
