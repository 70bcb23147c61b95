"""Multi-query associative recall: pairs of random tokens, then each first one again; the share of second ones told.

    k1 v1 / k2 v2 / ... / kn vn /   the same in another order /   k7 v7 / k2 v2 / ...   every v of the end counts

Source: Arora et al. 2023, arXiv:2312.04927 (Zoology), section 3.1. Models are trained for that task there; one that was
not has to see that these are pairs, so each stands on a line of its own (where there is a tokenizer) and is told twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from compiler.evidence import Probe
from compiler.evidence.probes.recall import Recall, RecallProbe, drawn_tokens
from compiler.evidence.token_windows import text_tokenizer
from compiler.hookspecs import hookimpl

if TYPE_CHECKING:
    from compiler.program import Program

SEQUENCE_COUNT = 6
TIMES_TOLD = 2
PAIR_COUNT = 8


class AssociativeRecall(RecallProbe):
    """Accuracy on values whose keys and values stood earlier in the sequence, in another order."""

    name: ClassVar[str] = "associative-recall"
    longest: ClassVar[int] = 3 * PAIR_COUNT * (TIMES_TOLD + 1)

    def recalls(self, program: Program, generator: torch.Generator) -> Iterator[Recall]:
        """Six sequences of eight pairs, told twice, and their eight questions."""
        line_end = _line_end(program)
        for _ in range(SEQUENCE_COUNT):
            drawn = drawn_tokens(program, 2 * PAIR_COUNT, generator)
            pairs = drawn[: len(drawn) // 2 * 2].view(-1, 2)  # [pairs, 2]
            lines = torch.cat([pairs, line_end.expand(len(pairs), -1)], 1)  # [pairs, 2 or 3]
            told = [lines[torch.randperm(len(lines), generator=generator)] for _ in range(TIMES_TOLD + 1)]
            step, asked = lines.shape[1], TIMES_TOLD * lines.numel()
            places = [asked + step * index + 1 for index in range(len(lines))]
            yield Recall(torch.cat(told).flatten(), [slice(place, place + 1) for place in places])


def _line_end(program: Program) -> Tensor:
    """The token that ends a line, [1, 1], or none, [1, 0]."""
    found = text_tokenizer(program)[1]("\n") if program.tokenizer is not None else []
    return torch.tensor(found[-1:], dtype=torch.int64)[None]


@hookimpl
def register_probes() -> list[type[Probe]]:
    """The built-in probe of this file."""
    return [AssociativeRecall]
