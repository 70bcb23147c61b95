"""Scales that learn: the product and its gradients against plain float64, and what becomes of a layer afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compiler.ops.quantized_linear import dequantized_weight
from compiler.quantization.block_product import BlockProduct
from compiler.quantization.block_rounding import nearest_blocks
from compiler.quantization.modules import BlockQuantizedLinear
from compiler.quantization.stand_ins import BlockForm


def plain_product(x: Tensor, steps: Tensor, scales: Tensor) -> Tensor:
    """Weight by weight, differentiable in float64."""
    rows = []
    for row_steps, row_scales in zip(steps, scales, strict=True):
        weights = [int(step) * scale for block, scale in zip(row_steps, row_scales, strict=True) for step in block]
        rows.append(sum(weights[i] * x[..., i] for i in range(x.shape[-1])))
    return torch.stack(rows, -1)


@pytest.mark.parametrize("inputs", [8, 7])
def test_the_product_and_its_gradients(inputs: int) -> None:
    """Also where the last block is not full."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, inputs, dtype=torch.float64, generator=generator, requires_grad=True)
    steps = torch.randint(-15, 16, (5, 2, 4), generator=generator).to(torch.int8)
    scales = torch.rand(5, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    asked = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    wanted = plain_product(x, steps, scales)
    expected = torch.autograd.grad((wanted * asked).sum(), (x, scales))
    found = BlockProduct.apply(x, steps, scales)
    gradients = torch.autograd.grad((found * asked).sum(), (x, scales))
    torch.testing.assert_close(found, wanted)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, check_dtype=False, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learning_starts_from_what_the_layer_gives_and_settles_into_its_scales(bits: int) -> None:
    torch.manual_seed(0)
    layer = BlockQuantizedLinear(nearest_blocks(torch.randn(6, 64), BlockForm(bits, 32, "mse")), torch.randn(6))
    x = torch.randn(3, 64)
    before = layer(x)
    layer.learn_scales()
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-4)
    assert isinstance(layer.gains, nn.Parameter)
    with torch.no_grad():
        layer.gains.uniform_(-0.1, 0.1)
    learned = layer(x)
    layer.settle()
    assert not list(layer.parameters())
    assert torch.equal(layer.scales, layer.scales.half().float())
    torch.testing.assert_close(layer(x), learned, rtol=1e-2, atol=1e-2)
    weight = dequantized_weight(layer.weight, layer.scales, layer.zero_points, bits, 64)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.bias))
