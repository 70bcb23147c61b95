"""Each stand-in alone learns what its site gave: AdamW on the normalised error, from one run of the teacher.

    error = |project(stand-in(inputs)) - project(output)|^2 / |project(output)|^2

Sites do not wait for each other and know nothing of each other; what one finished is kept at once. A stand-in keeps
what it learned only where that is better on batches that it was not trained on. Source: Zhang et al. 2024,
arXiv:2410.10254 (LoLCATs), section 3.1, where attention is matched layer by layer first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compiler.healing.activations import Activations
from compiler.healing.descent import Course, Descent, Settings, read_state
from compiler.healing.fading import fade_all, fades
from compiler.healing.interruption import Interruption
from compiler.healing.record import HealedSite
from compiler.healing.site_views import SiteView, run_slice
from compiler.healing.wall_time import WallTime
from compiler.kept_work import write_whole

LEARNING_RATE = 1e-2
WORTH_KEEPING = 0.999
"""Of the held-out error before."""
MOST_STEPS = 2000


@dataclass
class StandIn:
    """A module in the place of a site, its parameters that may learn, and their part of the learning rate."""

    view: SiteView
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    rate: float = 1.0


@dataclass(frozen=True)
class SiteData:
    """Kept activations: batches by number to learn from and to judge by, and the Program's inputs of each."""

    activations: Activations
    inputs: Callable[[int], Mapping[str, Tensor]]
    training: Sequence[int]
    held_out: Sequence[int]


def distil_site(
    stand_in: StandIn,
    data: SiteData | None,
    file: Path,
    seconds: float,
    wall: WallTime,
    interruption: Interruption,
    report: Callable[[Course], None],
) -> HealedSite:
    """Train one stand-in for so many seconds at most, or take up what `file` holds of an earlier run, for which no
    `data` is needed.
    """
    finished = read_state(file)
    if finished is not None:
        _set(stand_in.parameters, finished["parameters"])
        return HealedSite(**finished["record"])
    assert data is not None

    def gradient(step: int) -> tuple[float, int]:
        fade_all(stand_in.module, descent.course.share_done)
        index = data.training[step % len(data.training)]
        loss = _error(stand_in, data, index)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), 0

    def judge() -> float:
        fade_all(stand_in.module, 1.0)
        errors = [float(_error(stand_in, data, index)) for index in data.held_out]
        return sum(errors) / len(errors)

    unfinished = file.with_suffix(".part")
    fading, rate = fades(stand_in.module), LEARNING_RATE * stand_in.rate
    settings = Settings(seconds, "adamw", rate, unfinished, most_steps=MOST_STEPS, fades=fading)
    before = {name: one.detach().clone() for name, one in stand_in.parameters.items()}
    descent = Descent(stand_in.parameters, gradient, judge, settings, wall, report)
    course = descent.run(interruption)
    fade_all(stand_in.module, 1.0)
    kept = course.best < course.start * WORTH_KEEPING
    if not kept:
        _set(stand_in.parameters, before)
    record = HealedSite(
        stand_in.view.name, course.start, min(course.best, course.start), course.steps, course.seconds, kept
    )
    if not interruption:
        values = {name: one.detach().clone() for name, one in stand_in.parameters.items()}
        state = {"parameters": values, "record": vars(record)}
        write_whole(file, lambda partial: torch.save(state, partial))
        unfinished.unlink(missing_ok=True)
    return record


def _error(stand_in: StandIn, data: SiteData, index: int) -> Tensor:
    view = stand_in.view
    known = dict(data.inputs(index))
    kept = sorted(view.kept(known))
    known |= data.activations.read(index, kept)
    with torch.no_grad():
        inputs = run_slice(view.prepare, *(known[name] for name in view.read))
        beside = [known[name] for name in view.beside]
        (wanted,) = run_slice(view.project, known[view.output], *beside)
    (found,) = run_slice(view.project, stand_in.module(*inputs), *beside)
    return (found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)


@torch.no_grad()
def _set(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
