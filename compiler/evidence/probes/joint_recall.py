"""Joint recall: what a key stands for in one context, where the same key stands for something else in the others.

    c1 k1 v11 / c2 k1 v21 / c1 k2 v12 / ...   the same in another order /   c2 k1 v21 / ...   every v of the end counts

Neither the context nor the key is enough to know the value, so a model has to look for both at once.

Source: Zhan et al. 2025, arXiv:2507.00449, section 3. As in associative recall, each line is told twice here, for a
model that was not trained for the task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch

from compiler.evidence import Probe
from compiler.evidence.probes.recall import Draw, Recall, RecallProbe, drawn_tokens, told_and_asked, with_line_ends
from compiler.hookspecs import hookimpl

if TYPE_CHECKING:
    from compiler.program import Program

SEQUENCE_COUNT = 2
TIMES_TOLD = 2
CONTEXT_COUNT = 4
LONGEST_LINE = 4


class JointRecall(RecallProbe):
    """Accuracy on values that follow from a context and a key together."""

    name: ClassVar[str] = "joint-recall"

    def longest(self, reach: int) -> int:
        """Tokens of all lines."""
        return CONTEXT_COUNT * key_count(reach) * LONGEST_LINE * (TIMES_TOLD + 1)

    def recalls(self, program: Program, draw: Draw) -> Iterator[Recall]:
        """Lines of a context, a key and a value, told twice, and their questions."""
        for _ in range(SEQUENCE_COUNT):
            keys = key_count(draw.reach)
            drawn = drawn_tokens(program, CONTEXT_COUNT + keys + CONTEXT_COUNT * keys, draw.generator)
            keys = max(1, (len(drawn) - CONTEXT_COUNT) // (CONTEXT_COUNT + 1))
            contexts, keyed, values = drawn.tensor_split([CONTEXT_COUNT, CONTEXT_COUNT + keys])
            pairs = torch.cartesian_prod(contexts, keyed)  # [contexts * keys, 2]
            lines = torch.cat([pairs[: len(values)], values[: len(pairs), None]], 1)  # [lines, 3]
            yield told_and_asked(with_line_ends(program, lines), 2, TIMES_TOLD, draw.generator)


def key_count(reach: int) -> int:
    """So many that all that is told takes about `reach` tokens."""
    return max(1, reach // (CONTEXT_COUNT * LONGEST_LINE * TIMES_TOLD))


@hookimpl
def register_probes() -> list[type[Probe]]:
    """The built-in probe of this file."""
    return [JointRecall]
