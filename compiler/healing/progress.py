"""Healing as a line of progress: `healing: end to end  [#######.............]  0.0512 from 0.0684  6 min left`."""

from __future__ import annotations

from collections.abc import Callable

from compiler.healing.wall_time import WallTime

BAR_CELLS = 20
SECONDS_APART = 0.5


class Progress:
    """Says how far healing is, at most twice a second."""

    def __init__(self, name: str, tell: Callable[[str], None], wall: WallTime) -> None:
        self._name, self._tell, self._wall = name, tell, wall
        self._told_at = float("-inf")

    def stage(self, what: str) -> None:
        """A stage begins: this is told at once."""
        self._told_at = float("-inf")
        self.say(what)

    def say(self, what: str, start: float | None = None, now: float | None = None) -> None:
        """What is being done, with the held-out loss at first and now where there is one."""
        spent = self._wall.spent
        if spent - self._told_at < SECONDS_APART:
            return
        self._told_at = spent
        share = min(1.0, spent / self._wall.budget)
        bar = "#" * round(share * BAR_CELLS)
        loss = "" if start is None or now is None else f"  loss {now:.4g} from {start:.4g}"
        left = f"{_time(self._wall.left)} left"
        self._tell(f"{self._name}: healing [{bar:.<{BAR_CELLS}}] {share:.0%}  {what}{loss}  {left}")


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
