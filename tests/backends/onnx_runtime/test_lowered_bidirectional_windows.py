"""Attention to a window on either side in ONNX Runtime: short sequences at once, long ones in blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lowered_program import LoweredProgram
from torch import Tensor, nn

import compiler.ops.bidirectional_window_attention  # noqa: F401
from compiler.frontends.torch_export import capture
from compiler.program import Program

HEADS, HEAD_DIM, SCALE = 4, 8, 0.4


class _Window(nn.Module):
    def __init__(self, window: int, sinks: int) -> None:
        super().__init__()
        self.window, self.sinks = window, sinks

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        found = torch.ops.regraft.bidirectional_window_attention(
            query, key, value, mask > 0, self.window, self.sinks, SCALE
        )
        return (*found, torch.ops.regraft.bidirectional_window_attention(*found[:1] * 3, None, self.window, 0, 0.3)[0])


def inputs(tokens: int, kv_heads: int, pairs: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = {"query": (HEADS, tokens, HEAD_DIM), "key": (kv_heads, tokens, HEAD_DIM)}
    shapes |= {"value": shapes["key"], "mask": (1, tokens if pairs else 1, tokens)}
    return {name: torch.randn(2, *shape, generator=generator) for name, shape in shapes.items()}


def program(window: int, sinks: int, kv_heads: int, pairs: bool, fixed: int | None) -> Program:
    given = inputs(fixed or 7, kv_heads, pairs)
    tokens = {} if fixed else {2: "tokens"}
    dynamic = {name: {0: "batch", **tokens} for name in ("query", "key", "value")}
    dynamic["mask"] = {0: "batch"} if fixed else {0: "batch", 3: "tokens"} | ({2: "tokens"} if pairs else {})
    return capture(_Window(window, sinks), given, source="test", dynamic=dynamic)


@pytest.mark.parametrize(
    ("window", "sinks", "kv_heads", "pairs"), [(1, 0, 4, False), (2, 1, 2, True), (3, 2, 4, False), (2, 0, 4, True)]
)
def test_sequences_on_both_sides_of_where_blocks_begin(
    window: int, sinks: int, kv_heads: int, pairs: bool, tmp_path: Path
) -> None:
    lowered = LoweredProgram(program(window, sinks, kv_heads, pairs, None), tmp_path)
    assert "If" in lowered.lowered.kernels
    for tokens in (2, 7, 15, 31, 40):
        assert lowered.largest_error(*inputs(tokens, kv_heads, pairs).values()) < 1e-5


@pytest.mark.parametrize("tokens", [5, 30])
def test_a_fixed_length_takes_one_of_the_two(tokens: int, tmp_path: Path) -> None:
    lowered = LoweredProgram(program(2, 1, HEADS, True, tokens), tmp_path)
    assert "If" not in lowered.lowered.kernels
    assert lowered.largest_error(*inputs(tokens, HEADS, True).values()) < 1e-5
