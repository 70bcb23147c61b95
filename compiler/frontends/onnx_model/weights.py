"""Initializers and constants of an ONNX graph as parameters and buffers of a module, under their own names.

Floating tensors become parameters, so that an imported model trains; those that are no weights for certain (masks with
infinities in them), statistics of batch norms and integers become buffers. Single numbers that no layer takes as its
weight and small integer tensors stay known numbers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from compiler.frontends.onnx_model.element_types import carrier, tensor_from_numpy
from compiler.frontends.onnx_model.known import LARGEST_FOLDED, Known
from compiler.frontends.onnx_model.node_context import subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

LAYERS = frozenset(
    ["Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization"]
)
LARGEST_WEIGHT = 1e30
"""No weight is larger; the numbers that stand for minus infinity in masks are."""


def add_weights(module: nn.Module, graph: ir.Graph) -> dict[ir.Value, Known]:
    """Register every stored tensor of the graph and its subgraphs; give them as Knowns by ONNX value."""
    found: dict[ir.Value, Known] = {}
    for value, tensor in _stored(graph):
        held = stored_tensor(tensor)
        is_number = _is_number(held) and not _holds_codes(value, held) and not _is_layer_weight(value, held)
        trains = _is_trainable(held) and not _is_statistic(value)
        name = None if is_number else register(module, value.name or "constant", held, trains)
        found[value] = Known(held if _has_no_numpy(held) else held.numpy(), held.dtype, name)
    return found


def stored_tensor(tensor: ir.TensorProtocol) -> Tensor:
    """A stored tensor as torch's. External data is mapped, not read: pages come in when used, and stay clean."""
    import onnx_ir as ir

    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8 and tensor.size:
        offset, byte_count = tensor.offset or 0, int(tensor.size * tensor.dtype.itemsize)
        mapped = np.memmap(tensor.path, np.uint8, "c", int(offset), (byte_count,))
        return torch.from_numpy(mapped).view(carrier(tensor.dtype)).reshape([int(size) for size in tensor.shape])
    return tensor_from_numpy(tensor.numpy(), tensor.dtype)


def register(module: nn.Module, wanted: str, tensor: Tensor, trains: bool) -> str:
    """Keep a tensor in `module` under `wanted`, or a dotted name like it; returns the name."""
    *path, leaf = [part or "_" for part in wanted.split(".")]
    owner, names = module, []
    for part in path:
        if not isinstance(getattr(owner, part, None), nn.Module):
            part = _free(owner, part)
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
        names.append(part)
    leaf = _free(owner, leaf)
    if trains:
        owner.register_parameter(leaf, nn.Parameter(tensor))
    else:
        owner.register_buffer(leaf, tensor)
    return ".".join([*names, leaf])


def _free(owner: nn.Module, wanted: str) -> str:
    name, count = wanted, 0
    while hasattr(owner, name):
        count += 1
        name = f"{wanted}_{count}"
    return name


def _is_trainable(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        return False
    return tensor.numel() == 0 or all(abs(float(one)) < LARGEST_WEIGHT for one in torch.aminmax(tensor))


def _is_layer_weight(value: ir.Value, tensor: Tensor) -> bool:
    """Whether even a single number is a weight: the bias of a layer with one output."""
    layers = any(use.node.op_type in LAYERS and use.idx > 0 for use in value.uses())
    return tensor.is_floating_point() and tensor.dim() > 0 and layers


def _is_statistic(value: ir.Value) -> bool:
    """Whether a value is the mean or variance of a batch norm: gradients do not reach those."""
    return any(use.node.op_type == "BatchNormalization" and use.idx >= 3 for use in value.uses())


def _stored(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield value, value.const_value
    for node in graph:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            tensor = _constant_tensor(node)
            if tensor is not None:
                yield node.outputs[0], tensor
        for attribute in node.attributes.values():
            for inner in subgraphs(attribute):
                yield from _stored(inner)


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant node holds, whichever of its attributes says so; None for strings."""
    import onnx_ir as ir

    for name, attribute in node.attributes.items():
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.Tensor(np.asarray(attribute.value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return ir.Tensor(np.asarray(attribute.value, dtype=np.int64))
    return None


def _is_number(tensor: Tensor) -> bool:
    """Whether a stored tensor serves as numbers: a shape, an axis, an epsilon."""
    if tensor.is_floating_point():
        return tensor.numel() == 1
    return tensor.numel() <= LARGEST_FOLDED and tensor.dtype not in (torch.int8, torch.uint8)


def _holds_codes(value: ir.Value, tensor: Tensor) -> bool:
    """Whether integers are a quantized weight: a bias in 32 bits, a small matrix in 16."""
    return tensor.numel() > 1 and any(use.node.op_type == "DequantizeLinear" and use.idx == 0 for use in value.uses())


def _has_no_numpy(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bfloat16 or str(tensor.dtype).startswith("torch.float8")
