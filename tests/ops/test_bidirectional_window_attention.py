"""bidirectional_window_attention against loops over the formulas, at once and in blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from compiler.ops.bidirectional_window_attention import (
    bidirectional_window_attention,
    bidirectional_window_attention_in_blocks,
    bidirectional_window_attention_reference,
    blocks_from,
)

HEADS, KV_HEADS, HEAD_DIM, SCALE = 4, 2, 3, 0.6
SIZES = [(1, 0), (3, 0), (4, 2), (2, 3), (32, 1)]
"""Windows and sinks."""
FORMS = [
    bidirectional_window_attention_reference,
    bidirectional_window_attention_in_blocks,
    bidirectional_window_attention,
]


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(2, heads, tokens, HEAD_DIM, generator=generator, dtype=torch.float64).to(dtype)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def mask_of(kind: str, tokens: int) -> Tensor | None:
    shapes = {"padding": (2, 1, 1, tokens), "pairs": (1, 1, tokens, tokens), "heads": (2, HEADS, tokens, tokens)}
    if kind not in shapes:
        return None
    return torch.rand(shapes[kind], generator=torch.Generator().manual_seed(1)) > 0.4


def by_loops(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int, sinks: int
) -> tuple[Tensor, Tensor]:
    """One token at a time, from the words of the docstring."""
    tokens = query.shape[2]
    allowed = torch.ones(2, HEADS, tokens, tokens) if mask is None else mask.expand(2, HEADS, tokens, tokens)
    output, sums = torch.zeros_like(query), torch.zeros(query.shape[:3], dtype=torch.float64)
    for b in range(2):
        for h in range(HEADS):
            group = h // (HEADS // KV_HEADS)
            for p in range(tokens):
                seen = [
                    j
                    for j in range(tokens)
                    if j == p or ((abs(p - j) < window or j < sinks) and bool(allowed[b, h, p, j]))
                ]
                weights = [math.exp(SCALE * float(query[b, h, p] @ key[b, group, j])) for j in seen]
                sums[b, h, p] = math.log(sum(weights))
                output[b, h, p] = sum(
                    weight / sum(weights) * value[b, group, j] for weight, j in zip(weights, seen, strict=True)
                )
    return output, sums


@pytest.mark.parametrize(("window", "sinks"), SIZES)
@pytest.mark.parametrize(("tokens", "mask"), [(1, "none"), (13, "none"), (12, "padding"), (13, "pairs"), (11, "heads")])
def test_against_loops(window: int, sinks: int, tokens: int, mask: str) -> None:
    given = (*inputs(tokens), mask_of(mask, tokens))
    expected = by_loops(*given, window, sinks)
    for function in FORMS:
        for found, wanted in zip(function(*given, window, sinks, SCALE), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_long_sequences_are_read_in_blocks() -> None:
    assert blocks_from(2, 1) == 14
    query, key, value = inputs(140)
    with FlopCounterMode(display=False) as counted:
        bidirectional_window_attention(query, key, value, None, 2, 1, SCALE)
    assert counted.get_total_flops() == 4 * 2 * HEADS * 140 * 7 * HEAD_DIM
    with FlopCounterMode(display=False) as computed:
        bidirectional_window_attention_in_blocks(query, key, value, None, 2, 1, SCALE)
    assert computed.get_total_flops() == counted.get_total_flops()


@pytest.mark.parametrize("tokens", [4, 17])
def test_gradients(tokens: int) -> None:
    given = [one[:1].requires_grad_() for one in inputs(tokens)]
    mask = mask_of("padding", tokens)
    assert mask is not None
    assert torch.autograd.gradcheck(
        lambda *some: bidirectional_window_attention(*some, mask[:1], 2, 1, SCALE), given, fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_float32_at_least(dtype: torch.dtype) -> None:
    output, sums = bidirectional_window_attention(*inputs(9, dtype), None, 2, 1, SCALE)
    assert (output.dtype, sums.dtype) == (dtype, torch.float32)


def test_it_follows_the_rules_for_operators() -> None:
    torch.library.opcheck(
        torch.ops.regraft.bidirectional_window_attention.default,
        (*(one.requires_grad_() for one in inputs(9)), mask_of("padding", 9), 1, 1, SCALE),
    )


def test_what_does_not_fit() -> None:
    query, key, value = inputs(5)
    with pytest.raises(ValueError, match="a window of 0 tokens"):
        bidirectional_window_attention(query, key, value, None, 0, 1, SCALE)
    with pytest.raises(ValueError, match="cannot share"):
        bidirectional_window_attention(query[:, :3], key, value, None, 2, 1, SCALE)
    with pytest.raises(ValueError, match="do not fit"):
        bidirectional_window_attention(query, key[:, :, :4], value[:, :, :4], None, 2, 1, SCALE)
