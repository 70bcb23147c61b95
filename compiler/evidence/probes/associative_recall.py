"""Multi-query associative recall: pairs of random tokens, then each first one again; the share of second ones told.

    k1 v1 / k2 v2 / ... / kn vn /   the same in another order /   k7 v7 / k2 v2 / ...   every v of the end counts

Source: Arora et al. 2023, arXiv:2312.04927 (Zoology), section 3.1. Models are trained for that task there; one that was
not has to see that these are pairs, so each stands on a line of its own (where there is a tokenizer) and is told twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from compiler.evidence import Probe
from compiler.evidence.probes.recall import Draw, Recall, RecallProbe, drawn_tokens, told_and_asked, with_line_ends
from compiler.hookspecs import hookimpl

if TYPE_CHECKING:
    from compiler.program import Program

SEQUENCE_COUNT = 2
TIMES_TOLD = 2
LONGEST_LINE = 3


class AssociativeRecall(RecallProbe):
    """Accuracy on values whose keys and values stood earlier in the sequence, in another order."""

    name: ClassVar[str] = "associative-recall"

    def longest(self, reach: int) -> int:
        """Tokens of all lines."""
        return pair_count(reach) * LONGEST_LINE * (TIMES_TOLD + 1)

    def recalls(self, program: Program, draw: Draw) -> Iterator[Recall]:
        """Pairs, told twice, and their questions."""
        for _ in range(SEQUENCE_COUNT):
            drawn = drawn_tokens(program, 2 * pair_count(draw.reach), draw.generator)
            pairs = drawn[: len(drawn) // 2 * 2].view(-1, 2)  # [pairs, 2]
            yield told_and_asked(with_line_ends(program, pairs), 1, TIMES_TOLD, draw.generator)


def pair_count(reach: int) -> int:
    """So many that all that is told takes about `reach` tokens."""
    return max(1, reach // (LONGEST_LINE * TIMES_TOLD))


@hookimpl
def register_probes() -> list[type[Probe]]:
    """The built-in probe of this file."""
    return [AssociativeRecall]
