"""What a budget chose, as reports show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ChosenPlace:
    """What stands at a place now. `choice` is "" for what stood there before; bytes are those of the payload."""

    site: str
    kind: str
    choice: str
    cost: float = 0.0
    bytes: int = 0
    original_bytes: int = 0


@dataclass(frozen=True)
class LimitRecord:
    """One limit: what was allowed of how much, what the choice was expected to use, and what it uses on trial."""

    quantity: str
    text: str
    whole: float
    allowed: float
    expected: float
    measured: float


@dataclass(frozen=True)
class FrontierPoint:
    """The least expected cost with so much of a quantity."""

    amount: float
    cost: float


@dataclass(frozen=True)
class MixRecord:
    """The chosen mix. `expected` is the sum of costs in units of `error_name`; `corrections` what expected costs were
    multiplied by after candidates were measured alone; `frontier` is of the first limited quantity. A mix that came
    from a recipe has places alone.
    """

    places: tuple[ChosenPlace, ...]
    limits: tuple[LimitRecord, ...] = ()
    expected: float | None = None
    error_name: str = ""
    frontier: tuple[FrontierPoint, ...] = ()
    corrections: Mapping[str, float] | None = None
    candidate_count: int = 0
    reused: int = 0
    seconds: float = 0.0

    @property
    def texts(self) -> tuple[str, ...]:
        """The mix as a recipe holds it: `site: pass`, for what is replaced."""
        return tuple(f"{one.site}: {one.choice}" for one in self.places if one.choice)

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return asdict(self)
