"""sliding_window_attention against loops over the formulas, in one piece and in many."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from compiler.ops.sliding_window_attention import (
    sliding_window_attention,
    sliding_window_attention_in_blocks,
    sliding_window_attention_reference,
)

HEADS, KV_HEADS, HEAD_DIM, SCALE = 4, 2, 3, 0.6
SIZES = [(1, 0), (3, 0), (4, 2), (2, 3), (32, 1)]
"""Windows and sinks."""
FORMS = [sliding_window_attention_reference, sliding_window_attention_in_blocks, sliding_window_attention]


def inputs(tokens: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(batch, heads, tokens, HEAD_DIM, generator=generator, dtype=torch.float64).to(dtype)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def by_loops(query: Tensor, key: Tensor, value: Tensor, window: int, sinks: int) -> tuple[Tensor, Tensor]:
    """One number at a time, from the words of the docstring, for whole sequences."""
    output, sums = torch.zeros_like(query), torch.zeros(query.shape[:3], dtype=torch.float64)
    for b in range(query.shape[0]):
        for h in range(HEADS):
            group = h // (HEADS // KV_HEADS)
            for p in range(query.shape[2]):
                seen = [j for j in range(p + 1) if j < sinks or j > p - window]
                scores = [
                    SCALE * sum(float(query[b, h, p, i]) * float(key[b, group, j, i]) for i in range(HEAD_DIM))
                    for j in seen
                ]
                total = sum(math.exp(score) for score in scores)
                sums[b, h, p] = math.log(total)
                for i in range(HEAD_DIM):
                    output[b, h, p, i] = sum(
                        math.exp(score) / total * float(value[b, group, j, i])
                        for score, j in zip(scores, seen, strict=True)
                    )
    return output, sums


@pytest.mark.parametrize(("window", "sinks"), SIZES)
@pytest.mark.parametrize("tokens", [1, 4, 13])
def test_against_loops(window: int, sinks: int, tokens: int) -> None:
    given = inputs(tokens)
    expected = by_loops(*given, window, sinks)
    for function in FORMS:
        found = function(*given, None, None, None, window, sinks, SCALE)
        torch.testing.assert_close(found[:2], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("window", "sinks"), SIZES)
@pytest.mark.parametrize("pieces", [(13,), (1,) * 13, (2, 1, 6, 1, 3), (5, 8), (9, 4)])
def test_pieces_give_what_whole_sequences_give(window: int, sinks: int, pieces: tuple[int, ...]) -> None:
    given = inputs(13)
    expected = by_loops(*given, window, sinks)
    states = []
    for function in FORMS:
        slots = torch.full((2, KV_HEADS, sinks + window, HEAD_DIM), 9.0, dtype=torch.float64)
        state, start, found = (slots, slots), 0, []
        for part in zip(*(one.split(pieces, dim=2) for one in given), strict=True):
            length = torch.full((2,), start)
            *results, past_key, past_value = function(*part, *state, length, window, sinks, SCALE)
            found.append(results)
            state, start = (past_key, past_value), start + part[0].shape[2]
        joined = tuple(torch.cat(parts, 2) for parts in zip(*found, strict=True))
        torch.testing.assert_close(joined, expected, rtol=1e-12, atol=1e-12)
        states.append(state)
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=0, atol=0)


@pytest.mark.parametrize("tokens", [1, 5])
def test_rows_of_different_length(tokens: int) -> None:
    window, sinks, lengths = 4, 2, (0, 3, 17)
    whole = inputs(17 + tokens, batch=3)
    expected = by_loops(*whole, window, sinks)
    states = [
        sliding_window_attention_reference(
            *(one[row : row + 1, :, :length] for one in whole), None, None, None, window, sinks, SCALE
        )[2:]
        for row, length in enumerate(lengths)
    ]
    past = [torch.cat(parts) for parts in zip(*states, strict=True)]
    new = [torch.stack([one[row, :, length : length + tokens] for row, length in enumerate(lengths)]) for one in whole]
    for function in FORMS:
        found = function(*new, *past, torch.tensor(lengths), window, sinks, SCALE)[:2]
        for row, length in enumerate(lengths):
            for one, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(one[row], wanted[row, :, length : length + tokens], rtol=1e-12, atol=1e-12)


def test_no_tokens_leave_the_state_as_it_is() -> None:
    given, past = inputs(0), torch.randn(2, KV_HEADS, 6, HEAD_DIM, dtype=torch.float64)
    for function in FORMS:
        output, sums, *present = function(*given, past, past, torch.tensor([4, 9]), 4, 2, SCALE)
        assert output.shape == given[0].shape
        assert sums.shape == given[0].shape[:3]
        assert all(torch.equal(one, past) for one in present)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_sums_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    half = inputs(9, dtype=dtype)
    expected = by_loops(*(one.double() for one in half), 4, 1)
    for function in FORMS:
        output, sums, *states = function(*half, None, None, None, 4, 1, SCALE)
        assert (output.dtype, sums.dtype, states[0].dtype) == (dtype, torch.float32, dtype)
        torch.testing.assert_close(output.double(), expected[0], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(sums.double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_past", [True, False])
def test_gradients_against_finite_differences(with_past: bool) -> None:
    leaves = inputs(6)
    length = torch.tensor([3, 9]) if with_past else None
    if with_past:
        leaves += [torch.randn(2, KV_HEADS, 5, HEAD_DIM, dtype=torch.float64) for _ in range(2)]
    for leaf in leaves:
        leaf.requires_grad_()

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        past = tensors[3:] or (None, None)
        return sliding_window_attention(*tensors[:3], *past, length, 4, 1, SCALE)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_the_op_is_well_registered() -> None:
    given = inputs(6)
    past = torch.randn(2, KV_HEADS, 5, HEAD_DIM, dtype=torch.float64)
    op = torch.ops.regraft.sliding_window_attention.default
    for state in ((None, None, None), (past, past.clone(), torch.tensor([3, 9]))):
        torch.library.opcheck(op, (*given, *state, 4, 1, SCALE))


def test_work_grows_with_the_window_alone() -> None:
    with FlopCounterMode(display=False) as counter:
        sliding_window_attention(*inputs(64), None, None, None, 4, 1, SCALE)
    assert counter.get_total_flops() == 2 * 2 * 2 * HEADS * 64 * 5 * HEAD_DIM


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "a window of 0 tokens"),
        ({"sinks": -1}, "-1 sinks"),
        ({"query": torch.ones(2, 3, 5, HEAD_DIM)}, "3 query heads cannot share 2"),
        ({"value": torch.ones(2, KV_HEADS, 4, HEAD_DIM)}, "do not fit"),
        ({"past_key": torch.ones(2, KV_HEADS, 5, HEAD_DIM)}, "come together"),
        (
            {
                "past_key": torch.ones(2, KV_HEADS, 6, HEAD_DIM),
                "past_value": torch.ones(2, KV_HEADS, 5, HEAD_DIM),
                "past_length": torch.ones(2, dtype=torch.int64),
            },
            "past_key",
        ),
    ],
)
def test_inputs_that_do_not_fit(change: dict[str, Tensor | int], message: str) -> None:
    query, key, value = inputs(5, dtype=torch.float32)
    given = {"query": query, "key": key, "value": value, "past_key": None, "past_value": None, "past_length": None}
    settings = {"window": 4, "sinks": 1, "scale": SCALE}
    with pytest.raises(ValueError, match=message):
        sliding_window_attention(*(given | settings | change).values())


def test_it_exports_with_symbolic_sizes() -> None:
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
            return torch.ops.regraft.sliding_window_attention(query, key, value, None, None, None, 4, 1, SCALE)

    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(Module(), tuple(inputs(5)), dynamic_shapes=(dynamic,) * 3)
    larger = inputs(11, batch=3)
    expected = sliding_window_attention_reference(*larger, None, None, None, 4, 1, SCALE)
    torch.testing.assert_close(exported.module()(*larger), expected)
