"""Gradient descent for a share of the wall time: judged on held-out data, the best kept, checkpointed, resumed.

    learning rate   rises over the first twentieth of the share, then falls to 0 along a cosine
    last judgement  time for it is kept free
    early stop      where several judgements in a row were no better, the rest of the share is cut to a short fall
    a step too far  where the held-out loss is well above the best, the best comes back and the rate is a third
    fading          while dense weights fade out (fading.py) what is judged has not been trained yet: neither counts

The clock and not a count of steps says how far along a run is, so that it ends with its share whatever else the
machine does. Batches follow from the number of the step alone: a resumed run goes on with the one that came next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compiler.healing.fading import FADED_AT
from compiler.healing.interruption import Interruption
from compiler.healing.optimizers import Optimizers
from compiler.healing.wall_time import WallTime
from compiler.kept_work import write_whole

WARM_UP = 0.05
FEWEST, JUDGEMENTS = 4, 12
"""Judgements in a share: as many as the least time between them that settings say allows, within these."""
PATIENCE = 4
BETTER = 0.998
"""Of the best loss so far: what is above that is no progress."""
TAIL = 0.15
"""Of the share: the fall of the learning rate after an early stop."""
TOO_FAR, BACK_TO = 1.25, 1 / 3
GRADIENT_NORM = 1.0
CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 20.0, 0.1
"""A killed run loses no more than this, or than this part of a short share."""


@dataclass(frozen=True)
class Settings:
    """What one descent is given. Now and then its state is written to `file`. `start` is the held-out loss at first,
    where that is known. `fades` says whether something fades out meanwhile. `parts` are those parameters, by name, that
    take a part of the learning rate.
    """

    seconds: float
    optimizer: str
    learning_rate: float
    file: Path | None = None
    judge_seconds: float = 0.0
    most_steps: int | None = None
    start: float | None = None
    fades: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Course:
    """Where a descent is: what a checkpoint holds besides tensors."""

    seconds: float = 0.0
    horizon: float = 0.0
    steps: int = 0
    tokens: int = 0
    start: float = math.inf
    best: float = math.inf
    rate: float = 1.0
    waited: int = 0
    stopped_early: bool = False
    curve: list[tuple[float, float]] = field(default_factory=list)

    @property
    def share_done(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.seconds / self.horizon) if self.horizon else 1.0


class Descent:
    """Trains `parameters` until its share of the time is used.

    `gradient(step)` leaves gradients behind and gives the loss and the tokens of a step; `judge()` gives the held-out
    loss, and `report(course, loss)` hears of it now and then.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        gradient: Callable[[int], tuple[float, int]],
        judge: Callable[[], float],
        settings: Settings,
        wall: WallTime,
        report: Callable[[Course], None] = lambda course: None,
    ) -> None:
        self.parameters = dict(parameters)
        self.course = Course(horizon=settings.seconds)
        self._gradient, self._judge, self._settings = gradient, judge, settings
        self._wall, self._report = wall, report
        self._optimizers = Optimizers(self.parameters, settings.optimizer, settings.learning_rate, settings.parts)
        self._best = self._values()

    def run(self, interruption: Interruption) -> Course:
        """Train, and leave the parameters at the best that was seen. Raises nothing of its own."""
        course, settings = self.course, self._settings
        self._resume()
        started = self._wall.spent - course.seconds
        judged = kept = self._wall.spent
        if course.start == math.inf:
            course.start = self._judged() if settings.start is None else settings.start
        interval = max(min(settings.judge_seconds, settings.seconds / FEWEST), settings.seconds / JUDGEMENTS)
        reserve = 0.0
        while not interruption and course.share_done < 1 and course.steps != settings.most_steps:
            self._step()
            now = self._wall.spent
            course.seconds = now - started + reserve
            if now - judged >= interval:
                self._weigh(self._judged())
                judged = self._wall.spent
                reserve = judged - now
                course.seconds = judged - started + reserve
            if now - kept >= min(CHECKPOINT_SECONDS, settings.seconds * CHECKPOINT_SHARE):
                self._keep()
                kept = self._wall.spent
        if course.steps:
            self._weigh(self._judged())
        course.seconds = self._wall.spent - started
        self._keep()
        self._set(self._best)
        return course

    def _step(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None
        _, tokens = self._gradient(self.course.steps)
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), GRADIENT_NORM)
        self.course.steps += 1
        self.course.tokens += tokens
        if torch.isfinite(norm):
            self._optimizers.step(self.course.rate * _cosine(self.course.share_done))
        self._report(self.course)

    def _judged(self) -> float:
        with torch.no_grad():
            loss = self._judge()
        self.course.curve.append((self.course.seconds, loss))
        return loss

    def _weigh(self, loss: float) -> None:
        """Remember the best; cut the share short where there is no progress; go back where it went astray."""
        course = self.course
        least = min(course.best, course.start)
        fading = self._settings.fades and course.share_done < FADED_AT
        course.waited = 0 if fading or loss < least * BETTER else course.waited + 1
        if loss < least:
            course.best = loss
            self._best = self._values()
        elif not fading and not loss <= least * TOO_FAR:
            self._set(self._best)
            self._optimizers.forget()
            course.rate *= BACK_TO
        if course.waited >= PATIENCE and not course.stopped_early:
            course.stopped_early = True
            course.horizon = min(course.horizon, course.seconds + TAIL * course.horizon)

    def _values(self) -> dict[str, Tensor]:
        return {name: one.detach().clone() for name, one in self.parameters.items()}

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _keep(self) -> None:
        self._wall.keep()
        if self._settings.file is None:
            return
        state = {
            "course": asdict(self.course),
            "parameters": self._values(),
            "best": self._best,
            "optimizers": self._optimizers.state(),
        }
        write_whole(self._settings.file, lambda partial: torch.save(state, partial))

    def _resume(self) -> None:
        state = read_state(self._settings.file)
        if state is None or {name: one.shape for name, one in state["parameters"].items()} != {
            name: one.shape for name, one in self.parameters.items()
        }:
            return
        course = Course(**state["course"])
        course.horizon = course.horizon if course.stopped_early else self._settings.seconds
        course.curve = [(float(seconds), float(loss)) for seconds, loss in course.curve]
        vars(self.course).update(vars(course))
        self._best = state["best"]
        self._set(state["parameters"])
        self._optimizers.load(state["optimizers"])


def read_state(file: Path | None) -> dict[str, Any] | None:
    """What `torch.save` wrote of tensors and plain values; None where there is none that can be read."""
    if file is None or not file.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError):
        return None
    return state


def _cosine(share_done: float) -> float:
    """The learning rate over its largest."""
    if share_done < WARM_UP:
        return (share_done + 0.1 * WARM_UP) / (1.1 * WARM_UP)
    return 0.5 * (1 + math.cos(math.pi * (share_done - WARM_UP) / (1 - WARM_UP)))
