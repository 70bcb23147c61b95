"""quantized_linear with float zero points, and scales that float16 holds: against plain loops over the formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lowered_program import LoweredProgram, captured
from torch import Tensor, nn

import compiler.ops.quantized_linear  # noqa: F401  (it registers the operator)

OUT, SIZE = 6, 32
FLOAT16 = onnx.TensorProto.FLOAT16


class Product(nn.Module):
    """A quantized layer whose kernel computes in float, so that only rounding is left."""

    def __init__(self, inputs: int, bits: int, scales: Tensor, minima: Tensor) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        blocks = -(-inputs // SIZE)
        self.bits = bits
        self.register_buffer(
            "weight", torch.randint(0, 256, (OUT, blocks, SIZE * bits // 8), dtype=torch.uint8, generator=generator)
        )
        self.register_buffer("scales", scales)
        self.register_buffer("zero_points", -minima / scales)
        self.register_buffer("bias", torch.randn(OUT, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.regraft.quantized_linear(
            x, self.weight, self.scales, self.zero_points, self.bias, self.bits, SIZE, 0
        )


def looped(module: Product, x: Tensor, minima: Tensor) -> np.ndarray:
    """y[o] = sum over i of (d[o, b] q[o, i] + m[o, b]) x[i] + bias[o], b = i // 32, as llama.cpp defines Q4_1."""
    y = np.zeros((len(x), OUT))
    for row in range(len(x)):
        for o in range(OUT):
            total = float(module.bias[o])
            for i in range(x.shape[1]):
                b, place = divmod(i, SIZE)
                code = int(module.weight[o, b, place * module.bits // 8])
                if module.bits == 4:
                    code = code >> 4 if place % 2 else code & 15
                total += (float(module.scales[o, b]) * code + float(minima[o, b])) * float(x[row, i])
            y[row, o] = total
    return y


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [96, 80])
@pytest.mark.parametrize("in_half", [True, False])
def test_products(bits: int, inputs: int, in_half: bool, tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    shape = (OUT, -(-inputs // SIZE))
    scales, minima = torch.rand(shape, generator=generator) + 0.1, -torch.rand(shape, generator=generator) * 7
    if in_half:
        scales, minima = scales.half().float(), minima.half().float()
    module = Product(inputs, bits, scales, minima)
    lowered = LoweredProgram(captured(module, x=torch.randn(2, inputs, generator=generator)), tmp_path)
    x = torch.randn(3, inputs, generator=generator)
    expected = looped(module, x, minima)
    for found in (lowered.program.run(x)[0].numpy(), lowered.run(x)[0]):
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * abs(expected).max())
    kernels = lowered.lowered.kernels
    assert kernels["MatMulNBits"] == 1
    assert not {"Cast", "Mul", "Transpose"} & set(kernels), "what is constant is computed when the file is opened"
    types = {one.name: one.data_type for one in onnx.load(tmp_path / "model.onnx").graph.initializer}
    halves = {name for name, kind in types.items() if kind == FLOAT16}
    assert len(halves) == (2 if in_half else 0)
