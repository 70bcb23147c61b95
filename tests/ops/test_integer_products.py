"""matmul_integer, conv_integer and dynamic_quantize_linear against ONNX's reference evaluator and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch.utils.flop_counter import FlopCounterMode

from compiler.ops.conv_integer import conv_integer
from compiler.ops.dynamic_quantize_linear import dynamic_quantize_linear
from compiler.ops.matmul_integer import matmul_integer, matmul_integer_reference
from tests.ops.one_node_model import Array, run_nodes


def codes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randint(info.min, info.max + 1, shape, generator=generator, dtype=dtype)


def reference(op_type: str, inputs: dict[str, Array], **attributes: object) -> Array:
    """What ONNX's reference gives for one node with int32 output."""
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    node = helper.make_node(op_type, list(inputs), ["y"], **attributes)
    output = helper.make_tensor_value_info("y", TensorProto.INT32, None)
    model = helper.make_model(helper.make_graph([node], "one", infos, [output]))
    (found,) = ReferenceEvaluator(model).run(None, inputs)
    return np.asarray(found)


@pytest.mark.parametrize("left", [torch.uint8, torch.int8])
@pytest.mark.parametrize("right", [torch.uint8, torch.int8])
def test_a_product_is_exact(left: torch.dtype, right: torch.dtype) -> None:
    a, b = codes(left, 2, 3, 700), codes(right, 700, 5)
    zeros = codes(left, 1)[0], codes(right, 5)
    expected = reference("MatMulInteger", dict(zip("abyz", (one.numpy() for one in (a, b, *zeros)), strict=True)))
    np.testing.assert_array_equal(matmul_integer(a, b, *zeros).numpy(), expected)
    assert torch.equal(matmul_integer(a, b, None, None), matmul_integer_reference(a, b, None, None))


def test_zero_points_of_rows() -> None:
    a, b, zero = codes(torch.uint8, 4, 6), codes(torch.uint8, 6, 5), codes(torch.uint8, 4)
    expected = (a.int() - zero[:, None].int()) @ b.int()
    assert torch.equal(matmul_integer(a, b, zero, None), expected)
    assert torch.equal(matmul_integer_reference(a, b, zero, None), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_exact(groups: int) -> None:
    x, weight = codes(torch.uint8, 2, 4, 9, 8), codes(torch.uint8, 6, 4 // groups, 3, 2)
    zeros = torch.tensor(7, dtype=torch.uint8), torch.tensor(130, dtype=torch.uint8)
    named = dict(zip("xwyz", (one.numpy() for one in (x, weight, *zeros)), strict=True))
    (expected,) = run_nodes(
        [helper.make_node("ConvInteger", list(named), ["out"], pads=[1, 0, 2, 1], strides=[2, 1], group=groups)],
        named, {}, ["out"],
    )  # fmt: skip
    found = conv_integer(x, weight, *zeros, [2, 1], [1, 0, 2, 1], [1, 1], groups)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_zero_points_of_output_channels() -> None:
    x, weight, zero = codes(torch.uint8, 1, 2, 5), codes(torch.int8, 3, 2, 2), codes(torch.int8, 3)
    centred = weight.double() - zero.double()[:, None, None]
    expected = torch.nn.functional.conv1d(x.double(), centred).int()
    assert torch.equal(conv_integer(x, weight, None, zero, [1], [0, 0], [1], 1), expected)


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_dynamic_codes_are_those_of_onnx_runtime(shift: float) -> None:
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) + shift
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    expected = run_nodes([node], {"x": x.numpy()}, {}, ["y", "s", "z"])
    for ours, theirs in zip(dynamic_quantize_linear(x), expected, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
        assert ours.numpy().dtype == theirs.dtype


def test_they_pass_the_checks_of_torch_library() -> None:
    a, b = codes(torch.uint8, 3, 6), codes(torch.int8, 6, 5)
    torch.library.opcheck(torch.ops.regraft.matmul_integer.default, (a, b, codes(torch.uint8, 1)[0], None))
    x, weight = codes(torch.uint8, 1, 2, 5), codes(torch.int8, 3, 2, 2)
    arguments = (x, weight, None, None, [1], [1, 0], [1], 1)
    torch.library.opcheck(torch.ops.regraft.conv_integer.default, arguments)
    torch.library.opcheck(torch.ops.regraft.dynamic_quantize_linear.default, (torch.randn(3, 4),))


def test_arithmetic_is_counted() -> None:
    counter = FlopCounterMode(display=False)
    with counter:
        matmul_integer(codes(torch.uint8, 2, 3, 6), codes(torch.int8, 6, 5), None, None)
    assert counter.get_total_flops() == 2 * 2 * 3 * 6 * 5
    with counter:
        conv_integer(codes(torch.uint8, 1, 2, 5), codes(torch.int8, 3, 2, 2), None, None, [1], [0, 0], [1], 1)
    assert counter.get_total_flops() == 2 * (3 * 4) * (2 * 2)


def test_floats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a matrix of torch.float32; int8 or uint8 is needed"):
        matmul_integer(torch.ones(2, 2, device="meta"), torch.ones(2, 2, device="meta"), None, None)
