"""What all recall probes share: token sequences that hold the answers to their own questions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from compiler.evidence import Probe
from compiler.evidence.language import MASK, TOKENS, is_language_model, vocabulary_size
from compiler.program import Dimension

if TYPE_CHECKING:
    from compiler.program import Program, TensorSpec

MOST_WEIGHTS = 500_000_000


@dataclass(frozen=True)
class Recall:
    """Token ids [tokens], and the positions of each answer's tokens in them."""

    tokens: Tensor
    answers: Sequence[slice]


class RecallProbe(Probe):
    """The share of answers of which every token is the model's first choice, given what stands before it."""

    longest: ClassVar[int]
    """The most tokens of a sequence."""

    @abstractmethod
    def recalls(self, program: Program, generator: torch.Generator) -> Iterator[Recall]:
        """The sequences, drawn with `generator`; token ids are below the vocabulary's size."""

    def applies(self, program: Program) -> bool:
        """For a language model that is quick enough and takes one such sequence at a time."""
        if not is_language_model(program) or not {spec.name for spec in _read_from_data(program)} <= {TOKENS, MASK}:
            return False
        batch, length = next(spec.shape for spec in program.inputs if spec.name == TOKENS)
        if not isinstance(batch, Dimension) or not isinstance(length, Dimension):
            return False
        weight_count = sum(weight.numel() for weight in program.weights().values())
        return length.range.nearest(self.longest) == self.longest and weight_count <= MOST_WEIGHTS

    def score(self, program: Program, seed: int) -> float:
        """Between 0 and 1."""
        right = []
        for recall in self.recalls(program, torch.Generator().manual_seed(seed)):
            foretold = torch.cat([recall.tokens[:1], choices(program, recall.tokens)[:-1]])
            right += [torch.equal(foretold[answer], recall.tokens[answer]) for answer in recall.answers]
        return sum(right) / max(len(right), 1)


def choices(program: Program, tokens: Tensor) -> Tensor:
    """The most likely next token after each of `tokens`: [tokens]."""
    given = {TOKENS: tokens[None], MASK: torch.ones_like(tokens)[None]}
    batch = [given[spec.name].to(getattr(torch, spec.dtype)) for spec in _read_from_data(program)]
    return program.run(*program.complete(batch))[0][0].argmax(-1)


def drawn_tokens(program: Program, count: int, generator: torch.Generator) -> Tensor:
    """`count` different token ids that are frequent where the vocabulary is sorted by that, as byte pairs are; of a
    small vocabulary any ids, and at most half of it.
    """
    vocabulary = vocabulary_size(program) or 1
    first, last = vocabulary // 100, vocabulary // 10
    if last - first < count:
        first, last = 0, vocabulary
    return first + torch.randperm(last - first, generator=generator)[: max(1, min(count, vocabulary // 2))]


def _read_from_data(program: Program) -> list[TensorSpec]:
    """The inputs that data gives: all, or those of an incremental Program that are no states."""
    return [spec for spec in program.inputs if not program.states or spec.name in (TOKENS, MASK)]
