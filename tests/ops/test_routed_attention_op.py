"""routed_attention and context_score against loops over their formulas, in one piece and in many."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compiler.ops.context_score import context_score
from compiler.ops.routed_attention import routed_attention

HEADS, KV_HEADS, HEAD_DIM, SCALE, TOKENS = 4, 2, 3, 0.6, 13
SIZES = [(1, 0, 1), (3, 0, 5), (4, 2, 3), (2, 3, 7), (3, 1, 20)]
"""Windows, sinks, first tokens."""
SCORES = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
PIECES = [(13,), (1,) * 13, (2, 1, 6, 1, 3), (5, 8)]


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(len(SCORES), heads, TOKENS, HEAD_DIM, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def by_loops(query: Tensor, key: Tensor, value: Tensor, window: int, sinks: int, first: int) -> Tensor:
    """One number at a time, from the words of the docstring."""
    output = torch.zeros_like(query)
    for b, score in enumerate(SCORES.tolist()):
        for h in range(HEADS):
            group = h // (HEADS // KV_HEADS)
            for p in range(TOKENS):
                near = [j for j in range(p + 1) if j < sinks or j > p - window]
                seen = range(p + 1) if score > 0 or p < first else near
                scores = [
                    SCALE * sum(float(query[b, h, p, i]) * float(key[b, group, j, i]) for i in range(HEAD_DIM))
                    for j in seen
                ]
                total = sum(math.exp(one) for one in scores)
                for i in range(HEAD_DIM):
                    output[b, h, p, i] = sum(
                        math.exp(one) / total * float(value[b, group, j, i])
                        for one, j in zip(scores, seen, strict=True)
                    )
    return output


@pytest.mark.parametrize(("window", "sinks", "first"), SIZES)
def test_against_loops(window: int, sinks: int, first: int) -> None:
    given = inputs()
    expected = by_loops(*given, window, sinks, first)
    found = routed_attention(*given, SCORES, None, None, None, 0, window, sinks, first, SCALE)
    torch.testing.assert_close(found, (expected, *given[1:]), rtol=1e-12, atol=1e-12)
    alone = [one[1:2] for one in given]  # a sequence that goes without: only windows are computed
    output = routed_attention(*alone, SCORES[1:2], None, None, None, 0, window, sinks, first, SCALE)[0]
    torch.testing.assert_close(output, expected[1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("window", "sinks", "first"), SIZES)
@pytest.mark.parametrize("pieces", PIECES)
def test_pieces_give_what_whole_sequences_give(window: int, sinks: int, first: int, pieces: tuple[int, ...]) -> None:
    given = inputs()
    buffers = [torch.full((len(SCORES), KV_HEADS, 15, HEAD_DIM), 9.0, dtype=torch.float64)] * 2
    start, found = 0, []
    for part in zip(*(one.split(pieces, 2) for one in given), strict=True):
        length, start = torch.full((len(SCORES),), start), start + part[0].shape[2]
        output, *buffers = routed_attention(
            *part, SCORES, *buffers, length, start, window, sinks, first, SCALE
        )  # fmt: skip
        found.append(output)
    expected = by_loops(*given, window, sinks, first)
    torch.testing.assert_close(torch.cat(found, 2), expected, rtol=1e-12, atol=1e-12)
    for buffer, new in zip(buffers, given[1:], strict=True):
        assert torch.equal(buffer[:, :, :TOKENS], new)


@pytest.mark.parametrize("first", [1, 5, 13, 20])
@pytest.mark.parametrize("pieces", PIECES)
def test_a_score_is_of_the_first_tokens(first: int, pieces: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(first)
    hidden, weight = (torch.randn(*sizes, generator=generator, dtype=torch.float64) for sizes in ((2, 13, 4), (8,)))
    bias, state, start = torch.tensor(0.3, dtype=torch.float64), None, 0
    for part in hidden.split(pieces, 1):
        length = None if state is None else torch.full((2,), start)
        score, state = context_score(part, weight, bias, state, length, first)
        start += part.shape[1]
        for b in range(2):
            rows = hidden[b, : min(first, start)].tolist()
            means = [sum(row[i] for row in rows) / len(rows) for i in range(4)]
            largest = [max(row[i] for row in rows) for i in range(4)]
            expected = 0.3 + sum(w * x for w, x in zip(weight.tolist(), means + largest, strict=True))
            assert float(score[b]) == pytest.approx(expected, abs=1e-12)
    whole = context_score(hidden, weight, bias, torch.zeros(2, 9, dtype=torch.float64), torch.zeros(2).long(), first)
    torch.testing.assert_close(whole[0], score)


@pytest.mark.parametrize("with_past", [False, True])
def test_they_are_well_registered_and_gradients_are_right(with_past: bool) -> None:
    query, key, value = (one.requires_grad_() for one in inputs())
    past = [torch.zeros(3, KV_HEADS, 20, HEAD_DIM, dtype=torch.float64)] * 2 if with_past else [None, None]
    length = torch.tensor([0, 2, 5]) if with_past else None
    rest = (SCORES, *past, length, 18 if with_past else 0, 3, 1, 4, SCALE)
    torch.library.opcheck(torch.ops.regraft.routed_attention.default, (query, key, value, *rest))
    assert torch.autograd.gradcheck(lambda *given: routed_attention(*given, *rest), (query, key, value))
    hidden, weight, bias = torch.randn(3, 13, 4).requires_grad_(), torch.randn(8), torch.tensor(0.1)
    state = torch.zeros(3, 9) if with_past else None
    given = (hidden, weight, bias, state, length, 4)
    torch.library.opcheck(torch.ops.regraft.context_score.default, given)


@pytest.mark.parametrize(
    ("sizes", "message"), [((0, 0, 1), "at least 1 and 0"), ((1, -1, 1), "at least"), ((1, 0, 0), "at least")]
)
def test_sizes_that_make_no_sense(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routed_attention(*inputs(), SCORES, None, None, None, 0, *sizes, SCALE)


def test_inputs_that_do_not_fit() -> None:
    query, key, value = inputs()
    for given, message in (
        ((query[:, :3], key, value, SCORES, None, None, None, 0), "cannot share"),
        ((query[:, :, :4], key, value, SCORES, None, None, None, 0), "do not fit"),
        ((query, key, value, SCORES[:, None], None, None, None, 0), "is not"),
        ((query, key, value, SCORES, key, None, None, 0), "come together"),
        ((query, key, value, SCORES, key, value, torch.zeros(3).long(), 14), "14 keys"),
    ):
        with pytest.raises(ValueError, match=message):
            routed_attention(*given, 3, 1, 4, SCALE)
    hidden, weight, bias = torch.randn(2, 3, 4), torch.randn(8), torch.tensor(0.0)
    for given, message in (
        ((hidden[0], weight, bias, None, None, 2), "a token at least"),
        ((hidden, weight[:4], bias, None, None, 2), "weight"),
        ((hidden, weight, bias, torch.zeros(2, 9), None, 2), "come together"),
        ((hidden, weight, bias, torch.zeros(2, 8), torch.zeros(2).long(), 2), "past_state"),
    ):
        with pytest.raises(ValueError, match=message):
            context_score(*given)
