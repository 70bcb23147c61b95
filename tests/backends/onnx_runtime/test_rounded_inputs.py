"""Products whose kernels round their inputs: what they are held to, and how nearly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lowered_program import LoweredProgram, captured
from torch import Tensor, nn

from compiler.backends.onnx_runtime import ROUNDED_INPUT_TOLERANCE, ROUNDING_TOLERANCE
from compiler.ops.dequantize_linear import dequantize_linear
from compiler.ops.quantized_linear import inputs_rounded, quantized_linear

INPUTS, OUT, SIZE = 96, 40, 32
POINTS = ("none", "whole", "between codes")


class InBlocks(nn.Module):
    """A product of 4-bit weights in blocks, at accuracy level 4."""

    zero_points: Tensor | None

    def __init__(self, points: str) -> None:
        super().__init__()
        random, blocks = torch.Generator().manual_seed(1), INPUTS // SIZE
        codes = torch.randint(0, 256, (OUT, blocks, SIZE // 2), dtype=torch.uint8, generator=random)
        self.register_buffer("weight", codes)
        self.register_buffer("scales", torch.rand(OUT, blocks, generator=random) + 0.1)
        given = {
            "none": None,
            "whole": torch.randint(0, 256, (OUT, -(-blocks // 2)), dtype=torch.uint8, generator=random),
            "between codes": torch.rand(OUT, blocks, generator=random) * 15,
        }
        self.register_buffer("zero_points", given[points])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = quantized_linear(x, self.weight, self.scales, self.zero_points, None, 4, SIZE)
        return y


class OfIntegers(nn.Module):
    """The same as DequantizeLinear and a product, which ONNX Runtime fuses when it opens the file."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.register_buffer("weight", torch.randint(-8, 8, (INPUTS, OUT), dtype=torch.int8, generator=random))
        self.register_buffer("scales", torch.rand(INPUTS // SIZE, OUT, generator=random) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x @ dequantize_linear(self.weight, self.scales, None, "int4", 0, SIZE)
        return y


@pytest.mark.parametrize("points", POINTS)
def test_the_reference_rounds_as_the_kernel_does(points: str, tmp_path: Path) -> None:
    x = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(0))
    lowered = LoweredProgram(captured(InBlocks(points), x=x), tmp_path)
    assert lowered.lowered.rounds_inputs
    assert lowered.lowered.tolerance == ROUNDING_TOLERANCE
    (exact,) = lowered.program.run(x)
    with inputs_rounded():
        (expected,) = lowered.program.run(x)
    (found,) = lowered.run(x)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=5e-6 * float(expected.abs().max()))
    assert float((exact - expected).abs().max()) > 5e-4 * float(exact.abs().max())


def test_products_that_onnx_runtime_fuses_have_a_tolerance_of_their_own(tmp_path: Path) -> None:
    x = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(0))
    lowered = LoweredProgram(captured(OfIntegers(), x=x), tmp_path)
    assert lowered.lowered.kernels["MatMulNBits"] == 1
    assert not lowered.lowered.rounds_inputs
    assert lowered.lowered.tolerance == ROUNDED_INPUT_TOLERANCE
