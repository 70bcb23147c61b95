"""Attention to a window and a delay of tokens in ONNX Runtime: any count of tokens after rows of any length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lowered_program import LoweredProgram
from torch import Tensor, nn

import compiler.ops.sliding_window_attention
import compiler.ops.token_delay  # noqa: F401
from compiler.frontends.torch_export import capture
from compiler.program import Program

HEADS, KV_HEADS, HEAD_DIM, SCALE = 6, 2, 8, 0.4
LENGTHS = torch.tensor([0, 3, 37])


class _Window(nn.Module):
    def __init__(self, window: int, sinks: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.window, self.sinks, self.dtype = window, sinks, dtype

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        *given, length = past or (None, None, None)
        tensors = [None if one is None else one.to(self.dtype) for one in (query, key, value, *given)]
        found = torch.ops.regraft.sliding_window_attention(*tensors, length, self.window, self.sinks, SCALE)
        results = [one.float() for one in found]
        tensors[0] = found[0]  # a second layer, which shares places and masks
        again = torch.ops.regraft.sliding_window_attention(*tensors, length, self.window, self.sinks, 0.3)
        return *results, again[0].float()


class _WithPast(_Window):
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, length: Tensor
    ) -> tuple[Tensor, ...]:
        return super().forward(query, key, value, past_key, past_value, length)


class _WithoutPast(_Window):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        return super().forward(query, key, value)


def inputs(tokens: int, window: int, sinks: int, with_past: bool = True) -> dict[str, Tensor]:
    shapes = {"query": (HEADS, tokens), "key": (KV_HEADS, tokens), "value": (KV_HEADS, tokens)}
    if with_past:
        shapes |= {"past_key": (KV_HEADS, sinks + window), "past_value": (KV_HEADS, sinks + window)}
    given = {name: torch.randn(len(LENGTHS), *shape, HEAD_DIM) for name, shape in shapes.items()}
    return given | ({"length": LENGTHS} if with_past else {})


def program(window: int, sinks: int, with_past: bool = True, dtype: torch.dtype = torch.float32) -> Program:
    module = (_WithPast if with_past else _WithoutPast)(window, sinks, dtype)
    given = inputs(7, window, sinks, with_past)
    dynamic = {name: {0: "batch"} | ({2: "tokens"} if name in ("query", "key", "value") else {}) for name in given}
    return capture(module, given, source="test", dynamic=dynamic)


@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (4, 0), (4, 2), (16, 3)])
def test_a_window_after_rows_of_any_length(window: int, sinks: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lowered = LoweredProgram(program(window, sinks), tmp_path)
    for tokens in (1, 2, 4, 5, 16, 33):
        assert lowered.largest_error(*inputs(tokens, window, sinks).values()) < 1e-5


def test_a_window_over_whole_sequences(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lowered = LoweredProgram(program(4, 2, with_past=False), tmp_path)
    assert "If" not in lowered.lowered.kernels
    for tokens in (1, 4, 11):
        assert lowered.largest_error(*inputs(tokens, 4, 2, with_past=False).values()) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lowered = LoweredProgram(program(4, 2, dtype=dtype), tmp_path)
    for tokens in (1, 9):
        assert lowered.largest_error(*inputs(tokens, 4, 2).values()) < tolerance


@pytest.mark.parametrize("with_past", [True, False])
def test_token_delay(with_past: bool, tmp_path: Path) -> None:
    class Delay(nn.Module):
        def forward(self, x: Tensor, past: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
            held = (past, length) if with_past else (None, None)
            output, present = torch.ops.regraft.token_delay(x, *held, 4)
            return output + past.sum() + length.sum(), present

    given = {"x": torch.randn(2, 7, 3), "past": torch.randn(2, 4, 3), "length": torch.tensor([0, 5])}
    dynamic = {"x": {0: "batch", 1: "tokens"}, "past": {0: "batch"}, "length": {0: "batch"}}
    lowered = LoweredProgram(capture(Delay(), given, source="test", dynamic=dynamic), tmp_path)
    for tokens in (1, 4, 9):
        assert lowered.largest_error(torch.randn(3, tokens, 3), torch.randn(3, 4, 3), LENGTHS) < 1e-5
