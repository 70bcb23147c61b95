"""All stand-ins together, and low-rank changes to the layers around them, learn the teacher's outputs.

Teacher and student run on the same batch, one after the other; only the student's new parameters get gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from compiler.healing.descent import Course, Descent, Settings
from compiler.healing.fading import fade_all
from compiler.healing.interruption import Interruption
from compiler.healing.objectives import Objective
from compiler.healing.text_pieces import REPEATED_EVERY, Batch, with_repeated_span
from compiler.healing.wall_time import WallTime

TOKENS_A_STEP = 512
MOST_PIECES = 4
"""Batches a step, where windows are short."""


@dataclass(frozen=True)
class Lesson:
    """A student, its teacher, and what they are compared on.

    `complete` makes the Program's inputs of a batch; `row_mask` says which rows of an output are no padding; `tokens`
    is the position of the token ids among the inputs of a language model, None of another. What the teacher gave for
    batches that come again is remembered, up to `most_remembered` bytes in all.
    """

    teacher: fx.GraphModule
    student: fx.GraphModule
    objective: Objective
    complete: Callable[[Batch], tuple[Tensor, ...]]
    row_mask: Callable[[Batch, Tensor], Tensor | None]
    tokens: int | None
    most_remembered: int
    remembered: dict[int, tuple[Batch, Tensor]] = field(default_factory=dict)

    def loss(self, batch: Batch, *, comes_again: bool = False) -> Tensor:
        """Of the student on one batch, which `comes_again` or not."""
        inputs = self.complete(batch)
        _, wanted = self.remembered.get(id(batch), (batch, None))
        if wanted is None:
            with torch.no_grad():
                (wanted,) = self.teacher(*inputs)
            held = sum(one.nbytes for _, one in self.remembered.values())
            if comes_again and held + wanted.nbytes <= self.most_remembered:
                self.remembered[id(batch)] = batch, wanted
        (found,) = self.student(*inputs)
        return self.objective.loss(found, wanted, self.row_mask(batch, found))

    def judged(self, batches: Sequence[Batch]) -> float:
        """The mean loss of what ships, without gradients."""
        fade_all(self.student, 1.0)
        with torch.no_grad():
            losses = [float(self.loss(batch, comes_again=True)) for batch in batches]
        return sum(losses) / len(losses)

    def count(self, batch: Batch) -> int:
        """Tokens of a language model's batch, samples of another."""
        return batch[self.tokens].numel() if self.tokens is not None else len(batch[0]) if batch[0].dim() else 1

    def varied(self, batch: Batch, number: int, seed: int) -> Batch:
        """Batch `number` of a course as it is trained on: of language models some with a repeated span."""
        if self.tokens is None or number % REPEATED_EVERY != REPEATED_EVERY - 1:
            return batch
        changed = with_repeated_span(batch[self.tokens], seed + number)
        return (*batch[: self.tokens], changed, *batch[self.tokens + 1 :])


def distil_end_to_end(
    lesson: Lesson,
    parameters: dict[str, nn.Parameter],
    training: Sequence[Batch],
    held_out: Sequence[Batch],
    settings: Settings,
    seed: int,
    wall: WallTime,
    interruption: Interruption,
    report: Callable[[Course], None],
) -> Course:
    """Train until the share of the time is used; the parameters are left at the best that held-out batches saw."""
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed)).tolist()
    typical = max(1, lesson.count(training[0]))
    pieces = min(MOST_PIECES, max(1, TOKENS_A_STEP // typical)) if lesson.tokens is not None else 1

    def gradient(step: int) -> tuple[float, int]:
        fade_all(lesson.student, descent.course.share_done)
        total, seen = 0.0, 0
        for number in range(step * pieces, (step + 1) * pieces):
            plain = training[order[number % len(order)]]
            batch = lesson.varied(plain, number, seed)
            loss = lesson.loss(batch, comes_again=batch is plain) / pieces
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            seen += lesson.count(batch)
        return total, seen

    descent = Descent(parameters, gradient, lambda: lesson.judged(held_out), settings, wall, report)
    course = descent.run(interruption)
    fade_all(lesson.student, 1.0)
    return course
