"""The time that healing may take: counted on the clock on the wall, over all runs that worked in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from compiler.kept_work import write_whole

FILE_NAME = "seconds.json"


class WallTime:
    """Seconds spent of a budget. What `keep` wrote is spent in the next run too; what came after it was lost."""

    def __init__(self, budget: float, folder: Path, clock: Callable[[], float]) -> None:
        self.budget = budget
        self._file = folder / FILE_NAME
        self._clock = clock
        self._earlier = self._read()
        self._started = clock()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._earlier + self._clock() - self._started

    @property
    def left(self) -> float:
        """Seconds to come, never less than 0."""
        return max(0.0, self.budget - self.spent)

    def keep(self) -> None:
        """Remember the seconds spent for a later run."""
        text = json.dumps(self.spent)
        write_whole(self._file, lambda partial: partial.write_text(text, encoding="ascii"))

    def _read(self) -> float:
        try:
            return float(json.loads(self._file.read_text(encoding="ascii")))
        except (OSError, ValueError, TypeError):
            return 0.0
