"""Copying: random tokens twice, `a b c a b c`; of the second copy, the share of tokens that the model foretells.

After the first token of the second copy, each next one follows from where it stood before: what induction heads do
(Olsson et al. 2022, arXiv:2209.11895).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch

from compiler.evidence import Probe
from compiler.evidence.probes.recall import Draw, Recall, RecallProbe, drawn_tokens
from compiler.hookspecs import hookimpl

if TYPE_CHECKING:
    from compiler.program import Program

SEQUENCE_COUNT = 2


class Copying(RecallProbe):
    """Accuracy on the second of two copies of random tokens."""

    name: ClassVar[str] = "copying"

    def longest(self, reach: int) -> int:
        """Tokens of both copies."""
        return 2 * reach

    def recalls(self, program: Program, draw: Draw) -> Iterator[Recall]:
        """Two sequences; what each token follows from stands `reach` tokens back."""
        for _ in range(SEQUENCE_COUNT):
            span = drawn_tokens(program, draw.reach, draw.generator)
            answers = [slice(place, place + 1) for place in range(len(span) + 1, 2 * len(span))]
            yield Recall(torch.cat([span, span]), answers)


@hookimpl
def register_probes() -> list[type[Probe]]:
    """The built-in probe of this file."""
    return [Copying]
