"""Quantizing, dequantizing and products of integers, each as the ONNX operator of its name.

Codes of four and two bits are carried in bytes by a Program; here weights are packed, and what a QuantizeLinear gives
goes to the DequantizeLinear that reads it as it is. Only what else reads such codes gets them in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import arguments, operator_name, translates
from compiler.errors import CompilerError
from compiler.quantization.element_types import CARRIERS, FLOAT4, INTEGER_RANGES
from compiler.quantization.packing import pack_codes

PACKED_BITS = {"uint4": 4, "int4": 4, "uint2": 2, "int2": 2}
WITH_KERNELS = (torch.float32, torch.float16)
"""Types of the numbers that are quantized and of their scales."""


@translates("regraft.quantize_linear.default")
def quantize_linear(w: GraphWriter, node: fx.Node, *given: Any) -> ir.Value:
    codes, to = _codes(w, *given), given[3]
    return w.cast(codes, CARRIERS[to]) if to in PACKED_BITS else codes


@translates("regraft.dequantize_linear.default")
def dequantize_linear(
    w: GraphWriter,
    node: fx.Node,
    codes: fx.Node,
    scale: fx.Node,
    zero_point: fx.Node | None,
    of: str,
    axis: int,
    block_size: int,
) -> ir.Value:
    return _dequantized(w, _typed(w, codes, of), scale, zero_point, of, axis, block_size)


@translates("regraft.fake_quantize_linear.default")
def fake_quantize_linear(w: GraphWriter, node: fx.Node, *given: Any) -> ir.Value:
    _, scale, zero_point, to, axis, block_size, _ = given
    return _dequantized(w, _codes(w, *given), scale, zero_point, to, axis, block_size)


@translates("regraft.dynamic_quantize_linear.default")
def dynamic_quantize_linear(w: GraphWriter, node: fx.Node, x: fx.Node) -> tuple[ir.Value, ...]:
    activation = w.value(x)
    made: tuple[ir.Value, ...] = w.shared(
        ("DynamicQuantizeLinear", activation),
        lambda: w.emit_several("DynamicQuantizeLinear", activation, outputs=3),
    )
    return made


@translates("regraft.matmul_integer.default")
def matmul_integer(
    w: GraphWriter, node: fx.Node, a: fx.Node, b: fx.Node, a_zero_point: fx.Node | None, b_zero_point: fx.Node | None
) -> ir.Value:
    if a_zero_point is not None and a_zero_point.meta["val"].numel() > 1:
        return _float64_product(w, a, b, a_zero_point, b_zero_point)
    return w.emit(
        "MatMulInteger",
        w.value(a),
        w.value(b),
        _scalar(w, a_zero_point),
        w.value(b_zero_point) if b_zero_point is not None else None,
    )


@translates("regraft.conv_integer.default")
def conv_integer(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    x_zero_point: fx.Node | None,
    weight_zero_point: fx.Node | None,
    stride: Sequence[int],
    padding: Sequence[Any],
    dilation: Sequence[int],
    groups: int,
) -> ir.Value:
    if not all(isinstance(size, int) for size in padding):
        hint = "Give the model's spatial dims fixed sizes, or write its padding as numbers."
        raise CompilerError("lowering to ONNX", "an integer convolution whose padding is dynamic", hint, node.name)
    place: dict[str, Any] = {"strides": list(stride), "pads": list(padding), "dilations": list(dilation)}
    if weight_zero_point is not None and weight_zero_point.meta["val"].numel() > 1:
        _require_exact_in_float32(node, weight)
        kernel = _centred(w, weight, weight_zero_point, torch.float32, [-1, *[1] * (weight.meta["val"].dim() - 1)])
        product = w.emit("Conv", _centred(w, x, x_zero_point, torch.float32), kernel, **place, group=groups)
        return w.emit("Cast", product, to=int(ir.DataType.INT32))
    return w.emit(
        "ConvInteger",
        w.value(x),
        w.value(weight),
        _scalar(w, x_zero_point),
        _scalar(w, weight_zero_point),
        **place,
        group=groups,
    )


def _require_exact_in_float32(node: fx.Node, weight: fx.Node) -> None:
    """ConvInteger's kernel takes one zero point for all weights; a float32 convolution counts exactly up to 2**24."""
    terms = math.prod(int(size) for size in weight.meta["val"].shape[1:])
    if terms * 255 * 255 >= 2**24:
        hint = "Quantize the weights symmetrically, or with one zero point."
        problem = f"an integer convolution of {terms} terms with a zero point for each output channel"
        raise CompilerError("lowering to ONNX", problem, hint, node.name)


def _codes(
    w: GraphWriter,
    x: fx.Node,
    scale: fx.Node,
    zero_point: fx.Node | None,
    to: str,
    axis: int,
    block_size: int,
    saturate: bool,
) -> ir.Value:
    """QuantizeLinear's own result, of type `to`. The same question gives the same node."""

    def make() -> ir.Value:
        dtype = _kernel_dtype(scale)
        zero = _zero_point(w, scale, zero_point, to)
        return w.emit(
            "QuantizeLinear",
            w.tensor(x, dtype),
            w.tensor(scale, dtype),
            zero,
            axis=axis if _has_axis(scale) else None,
            block_size=block_size or None,
            saturate=None if saturate else 0,
            output_dtype=None if zero is not None or to == "uint8" else int(_data_type(to)),
        )

    made: ir.Value = w.shared(("QuantizeLinear", x, scale, zero_point, to, axis, block_size, saturate), make)
    made.dtype = _data_type(to)
    return made


def _dequantized(
    w: GraphWriter, codes: ir.Value, scale: fx.Node, zero_point: fx.Node | None, of: str, axis: int, block_size: int
) -> ir.Value:
    dtype, wanted = _kernel_dtype(scale), scale.meta["val"].dtype
    value = w.emit(
        "DequantizeLinear",
        codes,
        w.tensor(scale, dtype),
        _zero_point(w, scale, zero_point, of),
        axis=axis if _has_axis(scale) else None,
        block_size=block_size or None,
    )
    return value if dtype == wanted else w.cast(value, wanted)


def _typed(w: GraphWriter, codes: fx.Node, of: str) -> ir.Value:
    """Codes as a value of their own type: packed where they are stored, uncast where QuantizeLinear made them."""
    if operator_name(codes) == "regraft.quantize_linear.default" and arguments(codes)[3] == of:
        return _codes(w, *arguments(codes))
    data_type = _data_type(of)
    if of not in PACKED_BITS:
        return w.value(codes)
    if codes.op == "get_attr":
        return _packed_weight(w, codes, of)
    packed = w.emit("Cast", w.value(codes), to=int(data_type))
    packed.dtype = data_type
    return packed


def _packed_weight(w: GraphWriter, node: fx.Node, of: str) -> ir.Value:
    name = f"{node.target}.{of}"

    def make() -> ir.Value:
        stored = w.program.weight(node).detach()
        shape = ir.Shape(stored.shape)

        def load() -> ir.PackedTensor:
            return ir.PackedTensor(_packed(stored, PACKED_BITS[of]).numpy(), _data_type(of), shape=shape, name=name)

        return w.initializer(name, ir.LazyTensor(load, _data_type(of), shape, name=name))

    made: ir.Value = w.shared(("packed weight", name), make)
    return made


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes in bytes as they lie in ONNX: in row-major order, lowest bits first, negative ones as two's complement."""
    flat = torch.bitwise_and(codes.flatten().view(torch.uint8), 2**bits - 1)
    return pack_codes(torch.nn.functional.pad(flat, (0, -flat.numel() % (8 // bits))), bits)


def _zero_point(w: GraphWriter, scale: fx.Node, zero_point: fx.Node | None, kind: str) -> ir.Value | None:
    """The zero point in its type. Where there is none, zeros: ONNX Runtime fuses no pair of 8 or 16 bits without."""
    if zero_point is not None:
        return _typed(w, zero_point, kind)
    shape = scale.meta["val"].shape
    if kind not in INTEGER_RANGES or kind in PACKED_BITS or len(shape) > 1:
        return None
    return w.constant(np.zeros(tuple(shape), _data_type(kind).numpy()))


def _float64_product(
    w: GraphWriter, a: fx.Node, b: fx.Node, a_zero_point: fx.Node, b_zero_point: fx.Node | None
) -> ir.Value:
    """The kernel of MatMulInteger takes one zero point for the left matrix; float64 counts exactly."""
    rows = [-1, 1] if a_zero_point.meta["val"].dim() == 1 else None
    left = _centred(w, a, a_zero_point, torch.float64, rows)
    product = w.emit("MatMul", left, _centred(w, b, b_zero_point, torch.float64))
    return w.emit("Cast", product, to=int(ir.DataType.INT32))


def _centred(
    w: GraphWriter, codes: fx.Node, zero_point: fx.Node | None, dtype: torch.dtype, shape: Sequence[int] | None = None
) -> ir.Value:
    """Codes less their zero point, which takes on `shape` first, as floats."""
    value = w.cast(w.value(codes), dtype)
    if zero_point is None:
        return value
    zero = w.cast(w.value(zero_point), dtype)
    if shape is not None:
        zero = w.emit("Reshape", zero, w.constant(shape, np.int64))
    return w.emit("Sub", value, zero)


def _scalar(w: GraphWriter, node: fx.Node | None) -> ir.Value | None:
    """One number without dims, as kernels want it."""
    if node is None:
        return None
    value = w.value(node)
    return value if node.meta["val"].dim() == 0 else w.emit("Reshape", value, w.constant([], np.int64))


def _kernel_dtype(scale: fx.Node) -> torch.dtype:
    dtype: torch.dtype = scale.meta["val"].dtype
    return dtype if dtype in WITH_KERNELS else torch.float32


def _has_axis(scale: fx.Node) -> bool:
    return bool(scale.meta["val"].dim())


def _data_type(name: str) -> ir.DataType:
    if name == FLOAT4:
        hint = "Let the pass dequantize store such weights as floats."
        raise CompilerError("lowering to ONNX", f"ONNX Runtime has no kernels for {FLOAT4} on processors", hint)
    return ir.DataType[name.upper()]
