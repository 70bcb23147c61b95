"""Costs and figures of candidates, kept on disk as soon as they are known: a budget that was interrupted goes on, and
another one for the same model measures nothing again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.budget.places import Choice, Place
from compiler.budget.stand_alone import Figures
from compiler.content_digest import batches_digest, code_digest, program_digest, text_digest
from compiler.kept_work import kept_folder, write_whole

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.rewriting import PassContext

KIND, FILE_NAME = "budgets", "costs.jsonl"


@dataclass(frozen=True)
class Entry:
    """One candidate at one place: its expected cost, what it uses, and where it was put in alone what that added to the
    divergence of the outputs; or why there is none.
    """

    cost: float = 0.0
    figures: Figures | None = None
    note: str = ""
    divergence: float | None = None
    refused: str | None = None


class KeptCosts:
    """The entries that are known for a digest, a line each. A line that was cut short is measured again."""

    def __init__(self, digest: str) -> None:
        self._path = kept_folder(KIND, digest) / FILE_NAME
        self.entries: dict[tuple[str, str], Entry] = dict(_read(self._path))

    def get(self, place: Place, choice: Choice) -> Entry | None:
        """What is known of a candidate."""
        return self.entries.get((place.name, choice.text))

    def add(self, place: Place, choice: Choice, entry: Entry) -> None:
        """Keep one more."""
        if not self.entries:
            write_whole(self._path, Path.touch)
        self.entries[place.name, choice.text] = entry
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([place.name, choice.text, asdict(entry)]) + "\n")


def costs_digest(program: Program, context: PassContext, choices: Iterable[Choice]) -> str:
    """Names everything that a candidate's cost depends on, other candidates aside."""
    assert context.backend is not None
    return text_digest(
        program_digest(program),
        batches_digest(context.data.calibration),
        str(context.seed),
        str(context.target),
        context.backend.name,
        str(context.allow_simulated),
        code_digest(tuple(sorted({type(one.graft) for one in choices}, key=lambda cls: cls.name))),
    )


def _read(path: Path) -> Iterable[tuple[tuple[str, str], Entry]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            place, choice, values = json.loads(line)
            figures = values.pop("figures")
            yield (place, choice), Entry(figures=None if figures is None else Figures(**figures), **values)
        except (ValueError, KeyError, TypeError):
            continue
