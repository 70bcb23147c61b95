"""Reads an ONNX file into memory: protobuf, external data, functions inlined. Runs nothing of it and believes nothing.

External data must lie in the model's own folder. Sizes that a file states are compared with what it holds before
anything of that size is made.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.node_context import subgraphs
from compiler.frontends.onnx_model.quantized_graphs import unify_quantized
from compiler.frontends.traced_module import first_line

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

NEWEST_OPSET = 28
PROTOBUF_LIMIT_BYTES = 2**31 - 1
DAMAGED = "The file is damaged or was not finished; copy or export it again."


def read_model(doing: str, path: Path) -> ir.Model:
    """The model in a file. Raises CompilerError when it is no ONNX model, damaged, or reaches outside its folder."""
    import onnx
    import onnx_ir as ir

    size = path.stat().st_size
    if size > PROTOBUF_LIMIT_BYTES:
        hint = "Larger models keep their weights beside the .onnx file, as external data."
        raise CompilerError(doing, f"the file has {size / 1e9:.1f} GB, and protobuf ends at 2 GB", hint)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise CompilerError(doing, f"it cannot be read ({error.strerror})", "Check its permissions.") from error
    except Exception as error:  # DecodeError, whichever implementation of protobuf is installed
        raise CompilerError(doing, "it is no ONNX model: protobuf cannot decode it", DAMAGED) from error
    _check_proto(doing, proto)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # what it warns of is an error here, or does not matter
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # a file may hold anything, and the reader asserts, indexes and converts
        raise CompilerError(doing, f"it is no ONNX model ({first_line(error)})", DAMAGED) from error
    try:
        _check_names_and_outputs(doing, model)
        for tensor in stored_tensors(model):
            _check_tensor(doing, tensor, path.parent)
    except CompilerError:
        raise
    except Exception as error:  # an attribute of another type than it states, a tensor of none
        raise CompilerError(doing, f"it is no ONNX model ({first_line(error)})", DAMAGED) from error
    return prepared(doing, model)


def prepared(doing: str, model: ir.Model) -> ir.Model:
    """The model with its functions inlined, its quantized forms unified, and its nodes in an order that can run."""
    from onnx_ir.passes.common import InlinePass

    if model.functions:
        try:
            InlinePass()(model)
        except Exception as error:
            problem = f"its functions cannot be inlined ({first_line(error)})"
            raise CompilerError(doing, problem, "A function calls itself, or the file is damaged.") from error
    try:
        model.graph.sort()
    except ValueError as error:
        raise CompilerError(doing, "its nodes form a cycle", DAMAGED) from error
    unify_quantized(doing, model)
    return model


def stored_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that the model stores: initializers and attributes, in subgraphs and functions too."""
    yield from _tensors_in(model.graph)
    for function in model.functions.values():
        yield from _tensors_in(function.graph)


def _tensors_in(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type.name == "TENSOR":
                yield attribute.as_tensor()
            elif attribute.type.name == "TENSORS":
                yield from attribute.as_tensors()
            for inner in subgraphs(attribute):
                yield from _tensors_in(inner)


def _check_proto(doing: str, proto: onnx.ModelProto) -> None:
    """Raise CompilerError for what can be told without looking at nodes."""
    if not proto.HasField("graph") or not proto.graph.output:
        problem = "it holds no graph" if not proto.HasField("graph") else "its graph has no outputs"
        raise CompilerError(doing, f"it is no ONNX model: {problem}", DAMAGED)
    if not proto.opset_import:
        raise CompilerError(doing, "it does not say which operator set it uses", DAMAGED)
    for imported in proto.opset_import:
        if imported.domain in ("", "ai.onnx") and imported.version > NEWEST_OPSET:
            hint = "Export it with an earlier opset, or update Regraft."
            raise CompilerError(doing, f"opset {imported.version} is newer than {NEWEST_OPSET}", hint)
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise CompilerError(doing, f"initializer {name!r} is sparse", "Store it as a dense tensor.")


def _check_names_and_outputs(doing: str, model: ir.Model) -> None:
    """Raise CompilerError for an output that nothing computes, and for names that are no text."""
    graph = model.graph
    nodes = list(graph.all_nodes())
    graphs = [graph, *(inner for node in nodes for one in node.attributes.values() for inner in subgraphs(one))]
    named = [value for one in graphs for value in (*one.inputs, *one.outputs, *one.initializers.values())]
    named += [value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None]
    for name in (*(value.name for value in named), *(text for node in nodes for text in (node.name, node.op_type))):
        if name is not None and not (isinstance(name, str) and name.isprintable()):
            raise CompilerError(doing, f"the name {name!r} is no text", DAMAGED)
    for value in graph.outputs:
        if value.producer() is None and value not in graph.inputs and value.name not in graph.initializers:
            raise CompilerError(doing, f"nothing computes its output {value.name!r}", DAMAGED)


def _check_tensor(doing: str, tensor: ir.TensorProtocol, folder: Path) -> None:
    """Raise CompilerError for a tensor that states more than is there, or that lies outside `folder`."""
    import onnx_ir as ir

    name = tensor.name or "constant"
    try:
        shape, bits = [int(size) for size in tensor.shape], tensor.dtype.bitwidth
    except (TypeError, ValueError, AttributeError):
        if tensor.dtype.name == "STRING":
            return  # where strings are used is refused later
        problem = f"tensor {name!r} states no element type that is known"
        raise CompilerError(doing, problem, DAMAGED) from None
    if any(size < 0 for size in shape):
        raise CompilerError(doing, f"tensor {name!r} states the shape {shape}", DAMAGED)
    stated = -(-math.prod(shape) * bits // 8)
    if isinstance(tensor, ir.ExternalTensor):
        held = _external_bytes(doing, tensor, folder)
    elif isinstance(tensor, ir.TensorProtoTensor):
        held = _held_bytes(tensor.raw, stated, math.prod(shape))
    else:
        return
    if held < stated:
        problem = f"tensor {name!r} states {stated:,} bytes and {max(held, 0):,} are there"
        raise CompilerError(doing, problem, DAMAGED)
    if isinstance(tensor, ir.TensorProtoTensor):
        try:
            tensor.numpy()
        except Exception as error:  # too many numbers, or in a list of another type
            raise CompilerError(doing, f"tensor {name!r} does not decode ({first_line(error)})", DAMAGED) from error


def _held_bytes(proto: onnx.TensorProto, stated: int, count: int) -> int:
    """The bytes that a tensor's raw data, or its list of numbers, is good for."""
    if proto.HasField("raw_data"):
        return len(proto.raw_data)
    lists = (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data, proto.uint64_data)
    numbers = max(len(one) for one in lists)
    return stated if numbers * 16 >= count else 0  # a list may pack up to sixteen 2-bit numbers or halve a complex one


def _external_bytes(doing: str, tensor: ir.ExternalTensor, folder: Path) -> int:
    """The bytes from the tensor's offset on in its file. Raises CompilerError unless that lies in `folder`."""
    location = str(tensor.location)
    inside = folder.resolve()
    path = inside / location
    if Path(location).is_absolute() or not path.resolve().is_relative_to(inside):
        hint = "A model may only read files beside it; move the data there, or correct the path in the model."
        raise CompilerError(doing, f"tensor {tensor.name!r} lies outside the model's folder: {location!r}", hint)
    if not path.is_file():
        hint = f"Copy {Path(location).name} to where the model is."
        raise CompilerError(doing, f"the file {location!r} with tensor {tensor.name!r} is missing", hint)
    tensor.base_dir = str(inside)
    offset, length = tensor.offset or 0, tensor.length
    if offset < 0 or (length is not None and length < 0):
        raise CompilerError(doing, f"tensor {tensor.name!r} states a negative place in {location!r}", DAMAGED)
    there = path.stat().st_size - offset
    return there if length is None else min(there, length)
