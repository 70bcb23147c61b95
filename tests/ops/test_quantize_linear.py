"""quantize_linear, dequantize_linear and fake_quantize_linear against ONNX's reference; their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from compiler.ops.dequantize_linear import dequantize_linear
from compiler.ops.fake_quantize_linear import fake_quantize_linear
from compiler.ops.quantize_linear import quantize_linear
from compiler.quantization.element_types import CARRIERS, INTEGER_RANGES

FLOATS = ("float8e4m3fn", "float8e5m2", "float8e4m3fnuz", "float8e5m2fnuz", "float4e2m1")
GRANULARITIES = {"tensor": ((), 1, 0), "axis": ((4,), 1, 0), "last axis": ((6,), -1, 0), "blocks": ((2, 4, 6), 0, 2)}
"""Shape of the scales for values [3, 4, 6], axis, block size."""


def drawn(granularity: str) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Values, some of which lie outside of every range, and scales."""
    shape, axis, block_size = GRANULARITIES[granularity]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 6, generator=generator) * 20
    x[0, 0, :4] = torch.tensor([0.0, -1e4, 1e4, 0.5])
    return x, torch.rand(shape, generator=generator) + 0.5, axis, block_size


def evaluated(node: onnx.NodeProto, inputs: dict[str, tuple[int, np.ndarray[Any, Any]]], output: int) -> Any:
    """What ONNX's reference gives for one node; `inputs` by name with their ONNX types."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, kind, array.shape) for name, (kind, array) in inputs.items()],
        [helper.make_tensor_value_info(node.output[0], output, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    return ReferenceEvaluator(model).run(None, {name: array for name, (_, array) in inputs.items()})[0]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("to", [*INTEGER_RANGES, *FLOATS])
def test_codes_and_values_are_those_of_the_reference(to: str, granularity: str) -> None:
    x, scale, axis, block_size = drawn(granularity)
    kind = TensorProto.DataType.Value(to.upper())
    options = {"axis": axis, "block_size": block_size}
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=kind, **options)
    codes = evaluated(node, {"x": (1, x.numpy()), "s": (1, scale.numpy())}, kind)
    ours = quantize_linear(x, scale, None, to, axis, block_size, True)
    np.testing.assert_array_equal(ours.float().numpy(), codes.astype(np.float32))
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], **options)
    values = evaluated(node, {"x": (kind, codes), "s": (1, scale.numpy())}, 1)
    np.testing.assert_array_equal(dequantize_linear(ours, scale, None, to, axis, block_size).numpy(), values)
    np.testing.assert_array_equal(fake_quantize_linear(x, scale, None, to, axis, block_size, True).numpy(), values)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("to", ["uint8", "int16", "uint4"])
def test_zero_points(to: str, granularity: str) -> None:
    x, scale, axis, block_size = drawn(granularity)
    kind = TensorProto.DataType.Value(to.upper())
    zero = torch.randint(0, 8, scale.shape, generator=torch.Generator().manual_seed(1)).to(CARRIERS[to])
    stored = zero.numpy().astype(helper.tensor_dtype_to_np_dtype(kind))
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=axis, block_size=block_size)
    codes = evaluated(node, {"x": (1, x.numpy()), "s": (1, scale.numpy()), "z": (kind, stored)}, kind)
    ours = quantize_linear(x, scale, zero, to, axis, block_size, True)
    np.testing.assert_array_equal(ours.float().numpy(), codes.astype(np.float32))


def test_float8_that_does_not_saturate_overflows() -> None:
    x, scale = torch.tensor([1e6, -1e6]), torch.tensor(1.0)
    assert quantize_linear(x, scale, None, "float8e4m3fn", 1, 0, False).float().isnan().all()
    assert quantize_linear(x, scale, None, "float8e5m2", 1, 0, False).float().isinf().all()


def test_gradients_pass_where_nothing_is_clipped() -> None:
    x = torch.tensor([0.2, 0.7, 100.0, -100.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    fake_quantize_linear(x, scale, None, "int4", 1, 0, True).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert scale.grad is not None
    rounding = (0 - 0.4) + (1 - 1.4)
    torch.testing.assert_close(scale.grad, torch.tensor(rounding + 7 - 8))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_scales_learn(granularity: str) -> None:
    """The gradient of dequantizing is that of the formula in ATen operators."""
    _, scale, axis, block_size = drawn(granularity)
    codes = torch.randint(-8, 8, (3, 4, 6), dtype=torch.int8)
    found = torch.autograd.grad(
        dequantize_linear(codes, scale.requires_grad_(), None, "int4", axis, block_size).square().sum(), scale
    )
    spread = scale
    if block_size:
        spread = scale.repeat_interleave(block_size, axis)[: codes.shape[0]]
    elif scale.dim():
        spread = scale.reshape([-1 if index == axis % 3 else 1 for index in range(3)])
    torch.testing.assert_close(found, torch.autograd.grad((codes * spread).square().sum(), scale))


def test_a_vector_has_a_scale_an_item() -> None:
    scale = torch.rand(3, requires_grad=True)
    codes = torch.tensor([1, -2, 3], dtype=torch.int8)
    dequantize_linear(codes, scale, None, "int8", 0, 0).sum().backward()
    assert scale.grad is not None
    assert scale.grad.tolist() == [1.0, -2.0, 3.0]


def test_they_pass_the_checks_of_torch_library() -> None:
    x, scale, axis, block_size = drawn("blocks")
    options = ("int8", axis, block_size)
    codes = quantize_linear(x, scale, None, *options, True)
    torch.library.opcheck(torch.ops.regraft.quantize_linear.default, (x, scale, None, *options, True))
    torch.library.opcheck(torch.ops.regraft.dequantize_linear.default, (codes, scale.requires_grad_(), None, *options))
    arguments = (x.requires_grad_(), scale, None, *options, True)
    torch.library.opcheck(torch.ops.regraft.fake_quantize_linear.default, arguments)


def test_codes_in_another_carrier_are_refused() -> None:
    codes, scale = torch.zeros(2, dtype=torch.int8, device="meta"), torch.ones((), device="meta")
    with pytest.raises(ValueError, match=r"codes of type uint4 are not carried in torch.int8"):
        dequantize_linear(codes, scale, None, "uint4", 0, 0)
    with pytest.raises(ValueError, match="there is no quantizing to int32"):
        quantize_linear(scale, scale, None, "int32", 0, 0, True)
