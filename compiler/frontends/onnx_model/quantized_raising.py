"""Quantized products and tables in several ONNX nodes, raised to the one operator that they are.

Before:  DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul [-> Add]; DynamicQuantizeLinear -> MatMulIntegerToFloat
After:   DynamicQuantizeMatMul(x, W, scales, , bias)
Before:  MatMul(x, DequantizeLinear(W in blocks))                                   After:  MatMulNBits
Before:  DequantizeLinear(QuantizeLinear(x))                                        After:  FakeQuantizeLinear
Before:  Gather(4 * high + low - 32, rows) * Gather(scales, rows), six bits a code  After:  QuantizedEmbedding

The same that ONNX Runtime does when it loads a model, with the same numbers; here so that gradients pass, sites are
found, and codes of few bits stay packed (docs/decisions/0008-quantized-models-are-raised-while-read.md).
What fits none of these is read node by node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.frontends.onnx_model.graph_rewriting import inserted, new_initializer, stored
from compiler.ops.quantized_linear import INT8_COMPUTE

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"
REGRAFT = "regraft"
SMALLEST_BLOCK = 16


def raise_dynamic_product(node: ir.Node) -> ir.Node | None:
    """Mul(Cast(MatMulInteger(codes, W)), x_scale * w_scale), and the bias that is added to it."""
    if node.op_type == "Add":
        return _with_bias(node)
    if node.op_type != "Mul":
        return None
    for product, scale in _both_ways(node):
        cast = _producer(product, "Cast")
        matmul = _producer(cast.inputs[0], "MatMulInteger") if cast is not None and _only_use(product) else None
        if cast is None or matmul is None or not _only_use(cast.inputs[0]) or cast.attributes.get_int("to") != 1:
            continue
        scales = _producer(scale, "Mul")
        quantized = _dynamic_codes(matmul.inputs[0], _input(matmul, 2))
        if scales is None or quantized is None:
            continue
        for x_scale, w_scale in _both_ways(scales):
            if x_scale is quantized.outputs[1]:
                return _dynamic_product(node, matmul, quantized, w_scale, _input(matmul, 3), None)
    return None


def raise_integer_to_float(node: ir.Node) -> ir.Node | None:
    """MatMulIntegerToFloat of codes that DynamicQuantizeLinear made: the form that we write."""
    if (node.domain, node.op_type) != (MICROSOFT, "MatMulIntegerToFloat"):
        return None
    quantized = _dynamic_codes(node.inputs[0], _input(node, 4))
    if quantized is None or node.inputs[2] is not quantized.outputs[1]:
        return None
    return _dynamic_product(node, node, quantized, node.inputs[3], _input(node, 5), _input(node, 6))


def _with_bias(node: ir.Node) -> ir.Node | None:
    for product, bias in _both_ways(node):
        raised = _producer(product, "DynamicQuantizeMatMul", MICROSOFT)
        added = stored(bias)
        if raised is None or added is None or not _only_use(product) or _input(raised, 4) is not None:
            continue
        weight = stored(raised.inputs[1])
        if weight is not None and added.shape == weight.shape[1:]:
            inputs = [*raised.inputs[:3], None, bias]
            return inserted(node, "DynamicQuantizeMatMul", inputs, domain=MICROSOFT, like=raised)
    return None


def _dynamic_product(
    node: ir.Node, named: ir.Node, quantized: ir.Node, scale: ir.Value | None, zero: ir.Value | None,
    bias: ir.Value | None,
) -> ir.Node | None:  # fmt: skip
    weight, scales = stored(named.inputs[1]), stored(scale)
    if weight is None or scales is None or weight.dtype != np.int8 or weight.ndim != 2 or not _is_zero(zero):
        return None
    outputs = weight.shape[1]
    if scales.size not in (1, outputs) or scales.dtype != np.float32 or scale is None:
        return None
    if scales.shape != (outputs,):
        scale = new_initializer(node, f"{scale.name}_of_outputs", np.broadcast_to(scales.reshape(-1), outputs).copy())
    inputs = [quantized.inputs[0], named.inputs[1], scale, None, bias]
    return inserted(node, "DynamicQuantizeMatMul", inputs, domain=MICROSOFT, like=named)


def _dynamic_codes(codes: ir.Value | None, zero: ir.Value | None) -> ir.Node | None:
    """The DynamicQuantizeLinear whose codes and zero point these are."""
    found = _producer(codes, "DynamicQuantizeLinear")
    if found is None or codes is not found.outputs[0] or zero is not found.outputs[2]:
        return None
    return found


def raise_block_product(node: ir.Node) -> ir.Node | None:
    """MatMul with a weight [in, out] that is dequantized in blocks of inputs."""
    if node.op_type != "MatMul" or len(node.inputs) != 2:
        return None
    weight = _producer(node.inputs[1], "DequantizeLinear")
    if weight is None or not _only_use(node.inputs[1]):
        return None
    kind, codes, scales = _bits(weight.inputs[0]), stored(weight.inputs[0]), stored(weight.inputs[1])
    block_size = weight.attributes.get_int("block_size", 0)
    if kind is None or codes is None or scales is None or codes.ndim != 2 or scales.dtype != np.float32:
        return None
    if weight.attributes.get_int("axis", 1) % 2 != 0 or not _is_power_of_two(block_size):
        return None
    bits, signed = kind
    zero_value = _input(weight, 2)
    zeros = stored(zero_value) if zero_value is not None else np.zeros_like(scales)
    if zeros is None:
        return None
    return _block_product(node, weight, codes, scales, zeros, bits, 2 ** (bits - 1) if signed else 0, block_size)


def _block_product(
    node: ir.Node, weight: ir.Node, codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any],
    zeros: np.ndarray[Any, Any], bits: int, offset: int, block_size: int,
) -> ir.Node:  # fmt: skip
    """`offset` makes signed codes and zero points unsigned."""
    import torch

    from compiler.quantization.packing import pack_codes, pack_zero_points

    inputs, outputs = codes.shape
    blocks = len(scales)
    middles = (zeros.astype(np.int32) + offset).T  # [out, blocks]
    by_output = np.zeros((outputs, blocks * block_size), np.uint8)
    by_output[:, :inputs] = codes.astype(np.int32).T + offset
    packed = pack_codes(torch.from_numpy(by_output.reshape(outputs, blocks, block_size)), bits)
    name = str(weight.inputs[0].name) if weight.inputs[0] is not None else "weight"
    values = [
        node.inputs[0],
        new_initializer(node, f"{name}_blocks", packed.numpy()),
        new_initializer(node, f"{name}_scales", np.ascontiguousarray(scales.T)),
    ]
    if bool((middles != 2 ** (bits - 1)).any()):
        points = pack_zero_points(torch.from_numpy(np.ascontiguousarray(middles)), bits)
        values.append(new_initializer(node, f"{name}_zero_points", points.numpy()))
    attributes = {
        "K": inputs, "N": outputs, "bits": bits, "block_size": block_size, "accuracy_level": INT8_COMPUTE,
    }  # fmt: skip
    return inserted(node, "MatMulNBits", values, attributes, domain=MICROSOFT)


def raise_fake_quantization(node: ir.Node) -> ir.Node | None:
    """DequantizeLinear of what QuantizeLinear gave with the same scales."""
    if node.op_type != "DequantizeLinear":
        return None
    quantized = _producer(node.inputs[0], "QuantizeLinear", node.domain)
    if quantized is None or node.attributes.get_int("output_dtype", 0):
        return None
    if not _same(_input(node, 1), _input(quantized, 1)) or not _same(_input(node, 2), _input(quantized, 2)):
        return None
    theirs, scale = quantized.attributes, stored(node.inputs[1])
    placed = [(one.get_int("axis", 1), one.get_int("block_size", 0)) for one in (node.attributes, theirs)]
    of_tensor = scale is not None and scale.size == 1
    if theirs.get_int("precision", 0) or not (of_tensor or placed[0] == placed[1]):
        return None
    return inserted(node, "FakeQuantizeLinear", list(quantized.inputs), dict(theirs), domain=REGRAFT)


def raise_six_bit_table(node: ir.Node) -> ir.Node | None:
    """A table whose codes are a plane of four bits and a plane of two: the form that we write."""
    if node.op_type != "Mul":
        return None
    for rows, row_scales in _both_ways(node):
        cast, taken = _producer(rows, "Cast"), _producer(row_scales, "Gather")
        gather = _producer(cast.inputs[0], "Gather") if cast is not None else None
        if gather is None or taken is None or taken.inputs[1] is not gather.inputs[1]:
            continue
        planes, scales = _six_bit_planes(gather.inputs[0]), _widened(node, taken.inputs[0])
        known = stored(scales)
        if planes is None or known is None or known.shape != (len(planes[0]), 1):
            continue
        if gather.attributes.get_int("axis", 0) or taken.attributes.get_int("axis", 0):
            continue
        table = _packed_table(node, gather.inputs[0], planes)
        return inserted(
            node, "QuantizedEmbedding", [gather.inputs[1], table, scales], {"bits": 6},
            domain=REGRAFT, like=gather,
        )  # fmt: skip
    return None


def _widened(node: ir.Node, value: ir.Value | None) -> ir.Value | None:
    """Scales that are stored as float16 and cast, as the float32 that they become, once for every table."""
    cast = _producer(value, "Cast")
    if value is None or cast is None or (halves := stored(cast.inputs[0])) is None or halves.dtype != np.float16:
        return value
    known: ir.Value | None = value.meta.get("regraft.widened")
    if known is None:
        known = value.meta["regraft.widened"] = new_initializer(
            node, f"{value.name}_widened", halves.astype(np.float32)
        )
    return known


def _packed_table(node: ir.Node, codes: ir.Value | None, planes: tuple[Any, Any]) -> ir.Value:
    """The planes packed, once for every table."""
    import torch

    from compiler.quantization.packing import pack_codes

    assert codes is not None
    known: ir.Value | None = codes.meta.get("regraft.packed")
    if known is None:
        joined = (planes[0].astype(np.uint8) << 2) | planes[1].astype(np.uint8)
        name = str(codes.name).removesuffix(".high")
        known = new_initializer(node, f"{name}_six_bits", pack_codes(torch.from_numpy(joined), 6).numpy())
        codes.meta["regraft.packed"] = known
    return known


def _six_bit_planes(value: ir.Value | None) -> tuple[Any, Any] | None:
    """The planes [vocabulary, width] of 4 * high + low - 32."""
    centred = _producer(value, "Sub")
    if centred is None or not _is_number(centred.inputs[1], 32):
        return None
    joined = _producer(centred.inputs[0], "Add")
    for shifted, low in _both_ways(joined) if joined is not None else ():
        times = _producer(shifted, "Mul")
        if times is None or not _is_number(times.inputs[1], 4):
            continue
        planes = _plane(times.inputs[0], 4), _plane(low, 2)
        if planes[0] is not None and planes[1] is not None and planes[0].shape == planes[1].shape:
            return planes
    return None


def _plane(value: ir.Value | None, bits: int) -> np.ndarray[Any, Any] | None:
    """The unsigned codes of so many bits that are cast to `value`."""
    cast = _producer(value, "Cast")
    if cast is None or _bits(cast.inputs[0]) != (bits, False):
        return None
    plane = stored(cast.inputs[0])
    return plane if plane is not None and plane.ndim == 2 and plane.shape[1] % 4 == 0 else None


def _bits(value: ir.Value | None) -> tuple[int, bool] | None:
    """Bits, and whether they are signed, of stored codes of 2, 4 or 8 bits."""
    kinds = {"INT8": (8, True), "UINT8": (8, False), "INT4": (4, True), "UINT4": (4, False), "INT2": (2, True)}
    kinds["UINT2"] = (2, False)
    return kinds.get(value.dtype.name) if value is not None and value.dtype is not None else None


def _producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    node = value.producer() if value is not None else None
    return (
        node if node is not None and node.op_type == op_type and node.domain.removeprefix("ai.onnx") == domain else None
    )


def _both_ways(node: ir.Node) -> list[tuple[Any, Any]]:
    """The two inputs of a commutative operator in both orders."""
    if len(node.inputs) != 2:
        return []
    left, right = node.inputs
    return [(left, right), (right, left)]


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _only_use(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _same(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether two values are one, or store equal numbers."""
    if left is right:
        return True
    ours, theirs = stored(left), stored(right)
    return ours is not None and theirs is not None and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def _is_zero(value: ir.Value | None) -> bool:
    if value is None:
        return True
    known = stored(value)
    return known is not None and not known.any()


def _is_number(value: ir.Value | None, number: int) -> bool:
    known = stored(value)
    return known is not None and known.size == 1 and int(known.reshape(())) == number


def _is_power_of_two(block_size: int) -> bool:
    return block_size >= SMALLEST_BLOCK and block_size & (block_size - 1) == 0
