"""States of fixed size may be read and written in the same memory: a decoder binds past and present to one array."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lowered_program import LoweredProgram
from torch import Tensor, nn

import compiler.ops.causal_conv
import compiler.ops.linear_attention
import compiler.ops.sliding_window_attention
import compiler.ops.token_delay  # noqa: F401
from compiler.frontends.torch_export import capture

ops = torch.ops.regraft
ROWS, HEADS, WIDTH = 3, 2, 8


class Window(nn.Module):
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"past_key": (HEADS, 6, WIDTH), "past_value": (HEADS, 6, WIDTH)}

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, ...]:
        by_head = x.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)
        length = past_key[:, 0, 0, 0].abs().mul(9).long()
        output, _, *states = ops.sliding_window_attention(
            by_head, by_head.sin(), by_head.cos(), past_key, past_value, length, 4, 2, 0.5
        )
        return output, *states


class Recurrence(nn.Module):
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"past_state": (HEADS, WIDTH, WIDTH)}

    def forward(self, x: Tensor, past_state: Tensor) -> tuple[Tensor, ...]:
        decay, beta = -x[..., :HEADS].abs(), x[..., HEADS : 2 * HEADS].sigmoid()
        given = (x, 0.3 * x, x, past_state, decay, beta, HEADS, HEADS, "gated_delta", 0.0)
        return tuple(ops.linear_attention(*given))


class Convolution(nn.Module):
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"past_state": (HEADS * WIDTH, 3)}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HEADS * WIDTH, 1, 4))

    def forward(self, x: Tensor, past_state: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.causal_conv(x.transpose(1, 2), self.weight, None, past_state, "silu"))


class Delay(nn.Module):
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"past_state": (5, HEADS * WIDTH)}

    def forward(self, x: Tensor, past_state: Tensor) -> tuple[Tensor, ...]:
        length = past_state[:, 0, 0].abs().mul(9).long()
        return tuple(ops.token_delay(x, past_state, length, 5))


@pytest.mark.parametrize("form", [Window, Recurrence, Convolution, Delay])
def test_past_and_present_in_one_place(form: type[nn.Module], tmp_path: Path) -> None:
    from onnxruntime import OrtValue

    torch.manual_seed(0)
    module = form()

    def inputs(tokens: int) -> dict[str, Tensor]:
        given = {"x": torch.randn(ROWS, tokens, HEADS * WIDTH)}
        return given | {name: torch.randn(ROWS, *shape) for name, shape in module.shapes.items()}

    dynamic = {name: {0: "batch"} for name in module.shapes} | {"x": {0: "batch", 1: "tokens"}}
    lowered = LoweredProgram(capture(module, inputs(7), source="test", dynamic=dynamic), tmp_path)
    outputs = [spec.name for spec in lowered.program.outputs]
    presents = dict(zip(module.shapes, outputs[1:], strict=True))
    for tokens in (1, 2, 9, 64):
        given = inputs(tokens)
        expected = lowered.program.run(*given.values())
        binding = lowered.session.io_binding()
        shared = {name: OrtValue.ortvalue_from_numpy(one.clone().numpy()) for name, one in given.items()}
        for name, one in shared.items():
            binding.bind_ortvalue_input(name, one)
        binding.bind_output(outputs[0])
        for name, present in presents.items():
            binding.bind_ortvalue_output(present, shared[name])
        lowered.session.run_with_iobinding(binding)
        for found, wanted in zip(binding.get_outputs(), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found.numpy()), wanted, rtol=1e-5, atol=1e-5)
