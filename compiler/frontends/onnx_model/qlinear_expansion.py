"""Operators on codes, as QLinearConv, written out: dequantize each input, compute in float, quantize the output.

Before:  QLinearConv(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias)
After:   QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w), DequantizeLinear(bias)), y_scale, y_zero)

That is the form with which models are trained and which ONNX Runtime joins to its integer kernels again. Results are
equal but for codes that lie between two numbers, where float rounding may decide for the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.frontends.onnx_model.graph_rewriting import Rule, inserted, new_initializer, stored

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"
PAIR_VERSION = 21
"""Of QuantizeLinear and DequantizeLinear: per tensor, per axis and in blocks."""
FLOAT = 1
"""ONNX's number for float32."""

ONLY_MOVES = frozenset(
    ["Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"]
)
"""Operators whose first input's numbers are moved, or chosen by their order, and not changed."""


def expand_qlinear(node: ir.Node) -> ir.Node | None:
    """The rule: the quantizing node that ends the written-out form, or None where `node` is no such operator."""
    rule = _EXPANSIONS.get((node.domain or "ai.onnx", node.op_type))
    return None if rule is None else rule(node)


def dequantize_first(node: ir.Node) -> ir.Node | None:
    """The rule: DequantizeLinear(Reshape(codes)) as Reshape of dequantized codes, quantized and dequantized once more.

    For codes that QuantizeLinear gave, which are only moved or compared on the way: the same numbers, in the form that
    QDQ models have around such nodes.
    """
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    moved = codes.producer() if codes is not None else None
    if moved is None or moved.op_type not in ONLY_MOVES:
        return None
    scale = stored(node.inputs[1])
    if scale is None or scale.size != 1 or len(moved.outputs) != 1 or not _was_quantized(moved):
        return None
    first = inserted(node, "DequantizeLinear", [moved.inputs[0], *node.inputs[1:]], dict(node.attributes), like=moved)
    first.version = node.version
    deeper = dequantize_first(first)
    values = inserted(node, moved.op_type, [(deeper or first).outputs[0], *moved.inputs[1:]], dict(moved.attributes))
    values.version = moved.version
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    again = _quantized(node, values.outputs[0], node.inputs[1], zero)
    return inserted(node, "DequantizeLinear", [again.outputs[0], *node.inputs[1:]], version=PAIR_VERSION)


def _was_quantized(node: ir.Node | None) -> bool:
    """Whether the codes that a node moves come from a QuantizeLinear."""
    while node is not None and node.op_type in ONLY_MOVES:
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return node is not None and node.op_type == "QuantizeLinear"


def _convolution(node: ir.Node) -> ir.Node:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = _inputs(node, 9)
    inputs = [_dequantized(node, x, x_scale, x_zero), _dequantized(node, w, w_scale, w_zero, axis=0)]
    if bias is not None:
        inputs.append(_dequantized(node, bias, _product(node, x_scale, w_scale), None, axis=0))
    y = inserted(node, "Conv", inputs, dict(node.attributes))
    return _quantized(node, y.outputs[0], y_scale, y_zero)


def _matrix_product(node: ir.Node) -> ir.Node:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
    left = _dequantized(node, a, _in_float32(node, a_scale), a_zero, axis=-2, along=-1)
    right = _dequantized(node, b, _in_float32(node, b_scale), b_zero, axis=-1, along=-2)
    y = inserted(node, "MatMul", [left, right])
    return _quantized(node, y.outputs[0], _in_float32(node, y_scale), y_zero)


def _gemm(node: ir.Node) -> ir.Node:
    """Without an output scale the result stays a float."""
    a, a_scale, a_zero, b, b_scale, b_zero, bias, y_scale, y_zero = _inputs(node, 9)
    transposed = node.attributes.get_int("transB", 0)
    inputs = [
        _dequantized(node, a, a_scale, a_zero),
        _dequantized(node, b, b_scale, b_zero, axis=0 if transposed else 1),
    ]
    attributes = {name: node.attributes[name] for name in ("transA", "transB") if name in node.attributes}
    alpha = node.attributes.get_float("alpha", 1.0)
    if bias is not None:
        inputs.append(_dequantized(node, bias, _product(node, a_scale, b_scale, alpha), None, axis=0))
    y = inserted(node, "Gemm", inputs, {**attributes, "alpha": alpha})
    return y if y_scale is None else _quantized(node, y.outputs[0], y_scale, y_zero)


def _of_two(op_type: str) -> Callable[[ir.Node], ir.Node]:
    def expand(node: ir.Node) -> ir.Node:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _inputs(node, 8)
        y = inserted(node, op_type, [_dequantized(node, a, a_scale, a_zero), _dequantized(node, b, b_scale, b_zero)])
        return _quantized(node, y.outputs[0], y_scale, y_zero, a_zero)

    return expand


def _of_one(
    op_type: str, *, version: int | None = None, own: Sequence[str] = ()
) -> Callable[[ir.Node], ir.Node | None]:
    """`own` are attributes of the quantized operator that the float one lacks."""

    def expand(node: ir.Node) -> ir.Node | None:
        x, x_scale, x_zero, y_scale, y_zero = _inputs(node, 5)
        if node.attributes.get_int("channels_last", 0):
            return None
        attributes = {name: one for name, one in node.attributes.items() if name not in own}
        since = node.attributes.get_int("opset", 0) or version
        y = inserted(node, op_type, [_dequantized(node, x, x_scale, x_zero)], attributes, version=since)
        return _quantized(node, y.outputs[0], y_scale, y_zero, x_zero)

    return expand


def _where(node: ir.Node) -> ir.Node:
    condition, x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero = _inputs(node, 9)
    chosen = [condition, _dequantized(node, x, x_scale, x_zero), _dequantized(node, y, y_scale, y_zero)]
    return _quantized(node, inserted(node, "Where", chosen).outputs[0], z_scale, z_zero)


def _joined(node: ir.Node) -> ir.Node:
    y_scale, y_zero, *rest = node.inputs
    parts = [_dequantized(node, *rest[start : start + 3]) for start in range(0, len(rest), 3)]
    y = inserted(node, "Concat", parts, {"axis": node.attributes["axis"]})
    return _quantized(node, y.outputs[0], y_scale, y_zero)


_EXPANSIONS: dict[tuple[str, str], Rule] = {
    ("ai.onnx", "QLinearConv"): _convolution,
    ("ai.onnx", "QLinearMatMul"): _matrix_product,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "QLinearAdd"): _of_two("Add"),
    (MICROSOFT, "QLinearMul"): _of_two("Mul"),
    (MICROSOFT, "QLinearSigmoid"): _of_one("Sigmoid"),
    (MICROSOFT, "QLinearLeakyRelu"): _of_one("LeakyRelu"),
    (MICROSOFT, "QLinearGlobalAveragePool"): _of_one("GlobalAveragePool", own=("channels_last",)),
    (MICROSOFT, "QLinearAveragePool"): _of_one("AveragePool", own=("channels_last",)),
    (MICROSOFT, "QLinearReduceMean"): _of_one("ReduceMean", version=13),
    (MICROSOFT, "QLinearSoftmax"): _of_one("Softmax", own=("opset",)),
    (MICROSOFT, "QLinearWhere"): _where,
    (MICROSOFT, "QLinearConcat"): _joined,
}


def _inputs(node: ir.Node, count: int) -> list[ir.Value | None]:
    given = list(node.inputs)
    return given + [None] * (count - len(given))


def _dequantized(
    node: ir.Node, codes: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None = None,
    axis: int = 1, along: int | None = None,
) -> ir.Value:  # fmt: skip
    """`axis` is that of a vector of scales; scales of the rank of the codes hold along the dim `along`."""
    attributes: dict[str, Any] = {"axis": axis}
    if along is not None and scale is not None and scale.shape is not None and len(scale.shape) > 1:
        attributes = {"axis": along, "block_size": _size(codes, along)}
    made = inserted(node, "DequantizeLinear", [codes, scale, zero], attributes, version=PAIR_VERSION)
    return made.outputs[0]


def _size(value: ir.Value | None, dim: int) -> int:
    """A size that the model states; a block as large as any tensor stands for one that it does not."""
    size = value.shape[dim] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else 2**31 - 1


def _quantized(
    node: ir.Node, y: ir.Value, scale: ir.Value | None, zero: ir.Value | None, like: ir.Value | None = None
) -> ir.Node:
    """Without a zero point the codes have the type of the zero point `like`."""
    if zero is None and like is not None and like.dtype is not None:
        attributes = {"output_dtype": int(like.dtype)}
    else:
        attributes = {}
    return inserted(node, "QuantizeLinear", [y, scale, zero], attributes, version=PAIR_VERSION)


def _product(node: ir.Node, left: ir.Value | None, right: ir.Value | None, factor: float = 1.0) -> ir.Value:
    """The scale of a bias: the product of the scales of what it is added to."""
    known, other = stored(left), stored(right)
    if known is not None and other is not None:
        assert left is not None
        return new_initializer(node, f"{left.name}_bias", np.asarray(np.float32(factor) * known * other).squeeze())
    made = inserted(node, "Mul", [left, right])
    if factor != 1.0:
        made = inserted(node, "Mul", [made.outputs[0], new_initializer(node, "alpha", np.asarray(factor, np.float32))])
    return made.outputs[0]


def _in_float32(node: ir.Node, scale: ir.Value | None) -> ir.Value:
    """Half precision scales as float32: a product of codes in half precision would not be exact."""
    import onnx_ir as ir

    assert scale is not None
    if scale.dtype in (None, ir.DataType.FLOAT):
        return scale
    known = stored(scale)
    if known is not None:
        return new_initializer(node, f"{scale.name}_float32", known.astype(np.float32))
    return inserted(node, "Cast", [scale], {"to": FLOAT}).outputs[0]
