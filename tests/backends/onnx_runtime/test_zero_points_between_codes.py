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
OFFSET_KERNELS = {"MatMulNBits": 1, "MatMul": 1, "Reshape": 1, "ReduceSum": 1}
"""A product of codes, and one of offsets with the sums of the input's blocks."""


class Product(nn.Module):
    """A quantized layer whose kernel computes in float, so that only rounding is left."""

    def __init__(self, inputs: int, bits: int, scales: Tensor, minima: Tensor, seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
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


def drawn(inputs: int, seed: int) -> tuple[Product, Tensor]:
    """A product of 4-bit weights and the minima of its blocks."""
    generator = torch.Generator().manual_seed(seed)
    shape = (OUT, inputs // SIZE)
    minima = -torch.rand(shape, generator=generator) * 7
    return Product(inputs, 4, torch.rand(shape, generator=generator) + 0.1, minima, seed), minima


class Residual(nn.Module):
    """A product that is added to a residual in front of a norm; `seen` elsewhere too, or not."""

    def __init__(self, product: Product, seen: bool) -> None:
        super().__init__()
        self.product, self.seen = product, seen

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        y = self.product(x)
        normed = nn.functional.layer_norm(residual + y, (OUT,))
        return (normed, y.tanh()) if self.seen else (normed,)


@pytest.mark.parametrize(("seen", "kernels"), [(False, {"Sum": 1}), (True, {"Sum": 1, "Add": 1, "Tanh": 1})])
def test_a_residual_takes_the_offsets_in(seen: bool, kernels: dict[str, int], tmp_path: Path):
    product, minima = drawn(96, 2)
    generator = torch.Generator().manual_seed(0)
    x, residual = torch.randn(1, 3, 96, generator=generator), torch.randn(1, 3, OUT, generator=generator)
    lowered = LoweredProgram(captured(Residual(product, seen), x=x, residual=residual), tmp_path)
    y = looped(product, x[0], minima)[None]
    total = residual.double().numpy() + y
    deviation = total - total.mean(-1, keepdims=True)
    normed = deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-5)
    found = lowered.run(x, residual)
    np.testing.assert_allclose(found[0], normed, rtol=0, atol=2e-5)
    if seen:
        np.testing.assert_allclose(found[1], np.tanh(y), rtol=0, atol=5e-6 * abs(y).max())
    assert lowered.lowered.kernels == {"LayerNormalization": 1, **OFFSET_KERNELS, **kernels}


class Gated(nn.Module):
    """Two products of one input, whose results go separate ways."""

    def __init__(self, first: Product, second: Product) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x).cos(), self.second(x).tanh()


def test_products_of_one_input_share_the_sums_of_its_blocks_and_one_product_of_offsets(tmp_path: Path):
    (first, first_minima), (second, second_minima) = drawn(64, 2), drawn(64, 3)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    lowered = LoweredProgram(captured(Gated(first, second), x=x), tmp_path)
    rows = x.reshape(10, 64)
    y = [looped(first, rows, first_minima), looped(second, rows, second_minima)]
    for found, wanted in zip(lowered.run(x), (np.cos(y[0]), np.tanh(y[1])), strict=True):
        np.testing.assert_allclose(found.reshape(10, OUT), wanted, rtol=0, atol=5e-6 * np.abs(y).max())
    assert lowered.lowered.kernels == {**OFFSET_KERNELS, "Add": 1, "Split": 1, "Cos": 1, "Tanh": 1}
