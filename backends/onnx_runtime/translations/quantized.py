"""The quantized operators, each as the ONNX Runtime kernel it is named after."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import MICROSOFT, GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.shapes import shape_of
from compiler.errors import CompilerError
from compiler.patterns import is_weight


@translates("regraft.dynamic_quantized_linear.default")
def dynamic_quantized_linear(
    w: GraphWriter, node: fx.Node, x: fx.Node, weight: fx.Node, scales: fx.Node, bias: fx.Node | None
) -> ir.Value:
    """x [..., in], weight int8 [in, out]. Products of one x share its quantization; where there is only one product,
    ONNX Runtime joins the two nodes to DynamicQuantizeMatMul."""
    activation = w.value(x)
    quantized, scale, zero_point = w.shared(
        ("DynamicQuantizeLinear", activation),
        lambda: w.emit_several("DynamicQuantizeLinear", activation, outputs=3),
    )
    return w.emit(
        "MatMulIntegerToFloat",
        quantized,
        w.value(weight),
        scale,
        w.value(scales),
        zero_point,
        None,
        w.value(bias) if bias is not None else None,
        domain=MICROSOFT,
    )


@translates("regraft.quantized_linear.default")
def quantized_linear(
    w: GraphWriter,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    scales: fx.Node,
    zero_points: fx.Node | None,
    bias: fx.Node | None,
    bits: int,
    block_size: int,
    accuracy_level: int,
) -> ir.Value:
    """x [..., in], weight uint8 [out, blocks, block_size * bits / 8]: weights only, in blocks."""
    return w.emit(
        "MatMulNBits",
        w.value(x),
        w.value(weight),
        _held_in_half(w, scales),
        w.value(zero_points) if zero_points is not None else None,
        None,
        w.value(bias) if bias is not None else None,
        domain=MICROSOFT,
        K=int(shape_of(x)[-1]),
        N=int(shape_of(weight)[0]),
        bits=bits,
        block_size=block_size,
        accuracy_level=accuracy_level,
    )


def _held_in_half(w: GraphWriter, scales: fx.Node) -> ir.Value:
    """Scales, stored as float16 where that holds them exactly, as in files that come from llama.cpp."""
    if not is_weight(scales):
        return w.value(scales)
    stored = w.program.weight(scales).detach()
    if stored.dtype != torch.float32 or not torch.equal(stored.half().float(), stored):
        return w.value(scales)
    return w.cast(w.weight(scales, lambda one: one.half(), "float16"), torch.float32)


@translates("regraft.quantized_embedding.default")
def quantized_embedding(
    w: GraphWriter,
    node: fx.Node,
    indices: fx.Node,
    weight: fx.Node,
    scales: fx.Node,
    zero_points: fx.Node | None,
    bits: int,
    block_size: int,
) -> ir.Value:
    """indices [...], weight uint8 [vocabulary, width * bits / 8]: only the rows asked for are dequantized."""
    if bits == 6:
        return _six_bit_rows(w, indices, weight, scales)
    return w.emit(
        "GatherBlockQuantized",
        w.value(weight),
        w.value(indices),
        _held_in_half(w, scales),
        w.value(zero_points) if zero_points is not None else None,
        domain=MICROSOFT,
        gather_axis=0,
        quantize_axis=1,
        bits=bits,
        block_size=block_size,
    )


def _six_bit_rows(w: GraphWriter, indices: fx.Node, weight: fx.Node, scales: fx.Node) -> ir.Value:
    """Six bits as a plane of four and a plane of two, which ONNX Runtime joins to int8 once, when it loads the model.

    weight uint8 [vocabulary, width / 2 + width / 4]: the high four bits of every code, then the low two; scales
    [vocabulary, 1]. row = (4 * high + low - 32) * scale
    """
    if shape_of(scales)[1] != 1:
        raise CompilerError(
            "lowering to ONNX", "six bits with several scales a row", "Use one scale a row.", str(weight)
        )

    def table() -> ir.Value:
        vocabulary, row_bytes = (int(size) for size in shape_of(weight))
        high_bytes = row_bytes * 2 // 3  # row_bytes = width / 2 + width / 4
        shape = ir.Shape((vocabulary, high_bytes * 2))
        packed, name = w.program.weight(weight), str(weight.target)
        planes = []
        for part, plane, dtype in (
            ("high", packed[:, :high_bytes], ir.DataType.UINT4),
            ("low", packed[:, high_bytes:], ir.DataType.UINT2),
        ):
            stored = ir.PackedTensor(plane.contiguous().flatten().numpy(), dtype, shape=shape, name=f"{name}.{part}")
            planes.append(w.cast(w.initializer(f"{name}.{part}", stored), torch.int8))
        high, low = planes
        code = w.emit("Add", w.emit("Mul", high, w.constant(4, np.int8)), low)
        return w.emit("Sub", code, w.constant(32, np.int8))

    codes = w.shared(("six-bit table", str(weight.target)), table)
    rows = w.emit("Gather", codes, w.value(indices), axis=0)
    row_scales = w.emit("Gather", _held_in_half(w, scales), w.value(indices), axis=0)
    return w.emit("Mul", w.cast(rows, torch.float32), row_scales)
