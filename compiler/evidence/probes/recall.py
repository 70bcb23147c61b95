"""What all recall probes share: token sequences that hold the answers to their own questions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from compiler.evidence import Probe
from compiler.evidence.language import MASK, TOKENS, is_language_model, log_likelihoods, vocabulary_size
from compiler.program import Dimension

if TYPE_CHECKING:
    from compiler.program import Program, TensorSpec

MOST_WEIGHTS = 500_000_000
REACH = 128
"""How many tokens back the questions ask, about: farther than the windows that grafts leave."""
LEAST_REACH = 16

Part = Literal["scoring", "ranking"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Recall:
    """Token ids [tokens], and the positions of each answer's tokens in them."""

    tokens: Tensor
    answers: Sequence[slice]


@dataclass(frozen=True)
class RecallScore:
    """The share of answers told right, and the mean of -log p of an answer's token given all before it, in nats."""

    accuracy: float
    nats: float


@dataclass(frozen=True)
class Draw:
    """What a probe draws its sequences with: chance, how far back to ask, and what they are for.

    What sites are ranked on ("ranking") has nothing in common with what judges the result ("scoring").
    """

    generator: torch.Generator
    reach: int = REACH
    part: Part = "scoring"

    @classmethod
    def of(cls, seed: int, part: Part = "scoring", reach: int = REACH) -> Draw:
        """The draw that belongs to a seed: another one for either part."""
        return cls(torch.Generator().manual_seed(2 * seed + (part == "ranking")), reach, part)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The half of `items` that this part may use: that of the documents which text is scored or calibrated on."""
        return items[1::2] if self.part == "scoring" else items[::2]


class RecallProbe(Probe):
    """The share of answers of which every token is the model's first choice, given what stands before it."""

    @abstractmethod
    def recalls(self, program: Program, draw: Draw) -> Iterator[Recall]:
        """The sequences; token ids are below the vocabulary's size."""

    @abstractmethod
    def longest(self, reach: int) -> int:
        """The most tokens of a sequence that asks `reach` tokens back."""

    def applies(self, program: Program) -> bool:
        """For a language model that is quick enough and takes one such sequence at a time."""
        if not is_language_model(program) or not {spec.name for spec in _read_from_data(program)} <= {TOKENS, MASK}:
            return False
        if not all(isinstance(dim, Dimension) for dim in _token_dims(program)):
            return False
        weight_count = sum(weight.numel() for weight in program.weights().values())
        return self._reach(program, REACH) >= LEAST_REACH and weight_count <= MOST_WEIGHTS

    def drawn(self, program: Program, seed: int, part: Part = "scoring", reach: int = REACH) -> list[Recall]:
        """The sequences for a seed, which ask `reach` tokens back or, of a model that reads few, less far."""
        return list(self.recalls(program, Draw.of(seed, part, self._reach(program, reach))))

    def score(self, program: Program, seed: int) -> float:
        """Between 0 and 1."""
        return self.measure(program, seed).accuracy

    def measure(self, program: Program, seed: int, part: Part = "scoring", reach: int = REACH) -> RecallScore:
        """How much of what was drawn for a seed `program` recalls."""
        recalls = self.drawn(program, seed, part, reach)
        return recall_score(recalls, (logits_of(program, recall) for recall in recalls))

    def _reach(self, program: Program, wanted: int) -> int:
        """The largest half, quarter, ... of `wanted` whose sequences the model reads; 0 where that is too little."""
        while wanted >= LEAST_REACH and not _reads(program, self.longest(wanted)):
            wanted //= 2
        return wanted if wanted >= LEAST_REACH else 0


def recall_score(recalls: Sequence[Recall], logits: Iterator[Tensor]) -> RecallScore:
    """How much of `recalls` was told by a model that gave `logits`, [tokens, vocabulary] for each."""
    right: list[bool] = []
    lost: list[Tensor] = []
    for recall, found in zip(recalls, logits, strict=True):
        for answer in recall.answers:
            targets = recall.tokens[answer]
            rows = found[answer.start - 1 : answer.stop - 1].float()  # [answer, vocabulary]
            right.append(torch.equal(rows.argmax(-1), targets))
            lost.append(-log_likelihoods(rows, targets))
    return RecallScore(sum(right) / max(len(right), 1), float(torch.cat(lost).mean()) if lost else 0.0)


def logits_of(program: Program, recall: Recall) -> Tensor:
    """Logits after each token of a sequence: [tokens, vocabulary]."""
    return program.run(*program.complete(recall_batch(program, recall)))[0][0]


def recall_batch(program: Program, recall: Recall) -> tuple[Tensor, ...]:
    """A sequence as a batch of one."""
    given = {TOKENS: recall.tokens[None], MASK: torch.ones_like(recall.tokens)[None]}
    return tuple(given[spec.name].to(getattr(torch, spec.dtype)) for spec in _read_from_data(program))


def drawn_tokens(program: Program, count: int, generator: torch.Generator) -> Tensor:
    """`count` different token ids that are frequent where the vocabulary is sorted by that, as byte pairs are; of a
    small vocabulary any ids, and at most half of it.
    """
    vocabulary = vocabulary_size(program) or 1
    first, last = vocabulary // 100, vocabulary // 10
    if last - first < count:
        first, last = 0, vocabulary
    return first + torch.randperm(last - first, generator=generator)[: max(1, min(count, vocabulary // 2))]


def told_and_asked(lines: Tensor, answer: int, times: int, generator: torch.Generator) -> Recall:
    """`lines` [lines, tokens] told `times` times and then once more, each time in another order.

    Token `answer` of each line is asked for the last time.
    """
    orders = [lines[torch.randperm(len(lines), generator=generator)] for _ in range(times + 1)]
    asked = range(times * lines.numel() + answer, (times + 1) * lines.numel(), lines.shape[1])
    return Recall(torch.cat(orders).flatten(), [slice(place, place + 1) for place in asked])


def with_line_ends(program: Program, lines: Tensor) -> Tensor:
    """`lines` [lines, tokens] with the token that ends a line where there is a tokenizer to ask."""
    from compiler.evidence.token_windows import text_tokenizer

    found = text_tokenizer(program)[1]("\n") if program.tokenizer is not None else []
    return torch.cat([lines, torch.tensor([found[-1:]], dtype=torch.int64).expand(len(lines), -1)], 1)


def _reads(program: Program, count: int) -> bool:
    """Whether the model takes that many tokens, and was made for as many."""
    length = _token_dims(program)[1]
    assert isinstance(length, Dimension)
    return length.range.nearest(count) == count and count <= (program.context_length or count)


def _token_dims(program: Program) -> tuple[int | Dimension, int | Dimension]:
    """Batch and tokens of the token ids."""
    batch, length = next(spec.shape for spec in program.inputs if spec.name == TOKENS)
    return batch, length


def _read_from_data(program: Program) -> list[TensorSpec]:
    """The inputs that data gives: all, or those of an incremental Program that are no states."""
    return [spec for spec in program.inputs if not program.states or spec.name in (TOKENS, MASK)]
