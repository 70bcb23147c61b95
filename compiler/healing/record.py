"""What healing did, for the report: how long, on how much, and what it gained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class HealedSite:
    """One stand-in on its own: normalised squared error on held-out data as it was proposed, and after training.

    `kept` says whether what was learned stays; where it does not, the stand-in is as it was proposed.
    """

    site: str
    before: float
    after: float
    steps: int
    seconds: float
    kept: bool


@dataclass(frozen=True)
class HealingRecord:
    """All of it. `unit` says what `start`, `after_sites`, `end` and the curve (seconds, loss) of held-out data are in.

    `seconds` and `budget_seconds` are of wall time, resumed runs included; `tokens` counts what was trained on end to
    end, of language models tokens, otherwise samples. `parameters` are trained numbers, low-rank changes included.
    """

    budget_seconds: float
    seconds: float
    capture_seconds: float
    site_seconds: float
    end_to_end_seconds: float
    steps: int
    tokens: int
    parameters: int
    unit: str
    start: float
    after_sites: float
    end: float
    curve: tuple[tuple[float, float], ...]
    sites: tuple[HealedSite, ...]
    optimizer: str
    lora: int
    half: bool
    resumed: bool = False
    interrupted: bool = False
    stopped_early: bool = False
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        values["curve"] = [list(point) for point in self.curve]
        values["sites"] = [asdict(one) for one in self.sites]
        values["notes"] = list(self.notes)
        return values

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> HealingRecord:
        """What `to_json` gave."""
        read = dict(values)
        read["curve"] = tuple((float(seconds), float(loss)) for seconds, loss in values["curve"])
        read["sites"] = tuple(HealedSite(**one) for one in values["sites"])
        read["notes"] = tuple(values["notes"])
        return cls(**read)
