"""Needle: one line that states a number, hidden in prose, and asked for at the end; right if every token of it is.

... prose ... The secret number of Lisbon is 4817. ... prose ... The secret number of Lisbon is -> 4817
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch

from compiler.evidence import Probe
from compiler.evidence.probes.recall import Draw, Recall, RecallProbe
from compiler.evidence.token_windows import SHIPPED_PROSE, text_tokenizer
from compiler.hookspecs import hookimpl

if TYPE_CHECKING:
    from compiler.program import Program

CITIES = (
    "Lisbon", "Quito", "Oslo", "Vienna", "Cairo", "Riga", "Lima", "Seoul",
    "Kyoto", "Porto", "Dublin", "Hanoi", "Havana", "Athens", "Prague", "Tunis",
)  # fmt: skip
STATEMENT_TOKENS = 32
"""Room for each of the two statements."""


class Needle(RecallProbe):
    """Exact recall of a number that was stated once in running text."""

    name: ClassVar[str] = "needle"

    def longest(self, reach: int) -> int:
        """The prose and the two statements."""
        return reach + 2 * STATEMENT_TOKENS

    def applies(self, program: Program) -> bool:
        """Where there is a tokenizer as well."""
        return program.tokenizer is not None and super().applies(program)

    def recalls(self, program: Program, draw: Draw) -> Iterator[Recall]:
        """Eight texts; the number stands in the first half of each, at another depth."""
        prefix, encode = text_tokenizer(program)
        cities = draw.share(CITIES)
        documents = draw.share([path.read_text(encoding="utf-8") for path in sorted(SHIPPED_PROSE.glob("*.txt"))])
        for index, city in enumerate(cities):
            number = int(torch.randint(1000, 10000, (), generator=draw.generator))
            question = f"\nThe secret number of {city} is"
            answer = encode(f" {number}")
            prose = "\n".join([*documents[index:], *documents[:index]])
            filler = encode(prose)[: draw.reach]
            depth = index * len(filler) // (2 * len(cities))
            stated = encode(f"{question} {number}.\n")
            text = [*prefix, *filler[:depth], *stated, *filler[depth:], *encode(question), *answer]
            yield Recall(torch.tensor(text), [slice(len(text) - len(answer), len(text))])


@hookimpl
def register_probes() -> list[type[Probe]]:
    """The built-in probe of this file."""
    return [Needle]
