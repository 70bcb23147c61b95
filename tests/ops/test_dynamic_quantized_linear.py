"""dynamic_quantized_linear against plain loops over integers and against ONNX Runtime's own kernel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from compiler.ops.dynamic_quantized_linear import (
    dynamic_quantized_linear,
    dynamic_quantized_linear_reference,
    quantize_dynamically,
)
from tests.ops.one_node_model import run_nodes


def layer(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randint(-128, 128, (inputs, outputs), generator=generator, dtype=torch.int8)
    return weight, torch.rand(outputs, generator=generator) / 100, torch.randn(outputs, generator=generator)


def inputs_of(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 3
    return {"mixed": x, "positive": x.abs() + 1, "negative": -x.abs() - 1, "zero": x * 0, "outlier": x + 40 * (x > 7)}[
        kind
    ]


@pytest.mark.parametrize("kind", ["mixed", "positive", "negative", "zero", "outlier"])
def test_codes_are_those_of_onnx_runtime(kind: str) -> None:
    x = inputs_of(kind, (4, 7, 33))
    codes, scale, zero = quantize_dynamically(x)
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"])
    found = run_nodes([node], {"x": x.numpy()}, {}, ["codes", "scale", "zero"])
    np.testing.assert_array_equal(codes.numpy().astype(np.uint8), found[0])
    assert float(scale) == float(found[1])
    assert float(zero) == float(found[2])


@pytest.mark.parametrize("kind", ["mixed", "positive", "negative", "zero", "outlier"])
@pytest.mark.parametrize("inputs", [16, 600])
def test_numbers_are_those_of_onnx_runtime(kind: str, inputs: int) -> None:
    x = inputs_of(kind, (2, 5, inputs))
    weight, scales, bias = layer(inputs, 24)
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s", "", "b"], ["y"], domain="com.microsoft")
    stored: dict[str, Any] = {"w": weight.numpy(), "s": scales.numpy(), "b": bias.numpy()}
    (found,) = run_nodes([node], {"x": x.numpy()}, stored, ["y"])
    ours = dynamic_quantized_linear(x, weight, scales, bias).numpy()
    np.testing.assert_allclose(ours, found, rtol=2e-6, atol=2e-6 * float(np.abs(found).max()))


def test_loops_over_integers_agree() -> None:
    x = inputs_of("mixed", (3, 9))
    weight, scales, bias = layer(9, 4)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32(np.float32(high) - np.float32(low)) / np.float32(255)
    zero = round(-low / float(scale))
    for row in range(3):
        codes = [min(max(round(float(np.float32(v) / scale)) + zero, 0), 255) for v in x[row].tolist()]
        for column in range(4):
            total = sum((code - zero) * int(w) for code, w in zip(codes, weight[:, column].tolist(), strict=True))
            expected = total * float(scale) * float(scales[column]) + float(bias[column])
            found = float(dynamic_quantized_linear(x, weight, scales, bias)[row, column])
            assert math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize("inputs", [1, 512, 513, 2000])
def test_the_fast_product_is_exact(inputs: int) -> None:
    """Extreme codes and weights, whose sums pass 2**24 where float32 stops counting."""
    x = torch.ones(2, inputs)
    x[0, 0] = 0.5
    weight = torch.full((inputs, 3), 127, dtype=torch.int8)
    scales, bias = torch.tensor([1.0, 0.5, 0.1]), None
    fast = dynamic_quantized_linear(x, weight, scales, bias)
    assert torch.equal(fast, dynamic_quantized_linear_reference(x, weight, scales, bias))


def test_half_precision_keeps_its_dtype() -> None:
    weight, scales, bias = layer(16, 8)
    assert dynamic_quantized_linear(torch.randn(2, 16).bfloat16(), weight, scales, bias).dtype == torch.bfloat16


def test_gradients_pass_as_if_nothing_were_rounded() -> None:
    weight, scales, bias = layer(16, 8)
    x = torch.randn(3, 5, 16, requires_grad=True)
    bias.requires_grad_()
    dynamic_quantized_linear(x, weight, scales, bias).square().sum().backward()
    y = dynamic_quantized_linear(x.detach(), weight, scales, bias.detach())
    dense = weight.float() * scales
    torch.testing.assert_close(x.grad, 2 * y @ dense.T)
    torch.testing.assert_close(bias.grad, (2 * y).sum((0, 1)))


def test_passes_the_checks_of_torch_library() -> None:
    weight, scales, bias = layer(16, 8)
    arguments = (torch.randn(3, 16), weight, scales, bias)
    torch.library.opcheck(torch.ops.regraft.dynamic_quantized_linear.default, arguments)


def test_a_weight_that_does_not_fit_is_refused() -> None:
    weight, scales, bias = layer(16, 8)
    with pytest.raises(ValueError, match=r"weight torch.int8 \(16, 8\) for x \(2, 15\)"):
        torch.export.export(Layer(weight, scales, bias), (torch.randn(2, 15),))


class Layer(torch.nn.Module):
    def __init__(self, *tensors: torch.Tensor) -> None:
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(f"t{index}", tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = dynamic_quantized_linear(x, self.t0, self.t1, self.t2)
        return result
