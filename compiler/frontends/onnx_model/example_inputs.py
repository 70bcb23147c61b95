"""Example inputs for an ONNX graph, and which of their dims are symbolic, from its types and what the user states."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compiler.errors import CompilerError, nearest_hint
from compiler.frontends.input_texts import SEED, StatedInput
from compiler.frontends.onnx_model.element_types import carrier
from compiler.frontends.onnx_model.memory_guard import ALWAYS_ALLOWED_BYTES
from compiler.program import dtype_name

if TYPE_CHECKING:
    import onnx_ir as ir

BATCH_SIZE = 2
LARGEST_ITEM_BYTES = 8
SIZES_TO_TRY = (16, 64, 32, 128, 512, 224)
"""For dims that are free: models that halve their input several times need a multiple of 32."""
NOT_IN_NAMES = re.compile(r"\W+")


def check_stated(doing: str, model: ir.Model, stated: Mapping[str, StatedInput]) -> None:
    """Raise CompilerError for a statement about an input that the model lacks, or has with another dtype or rank."""
    inputs = {value.name or "": value for value in model.graph.inputs}
    for name, said in stated.items():
        value = inputs.get(name) or inputs.get(name.rpartition("_")[0])  # an item of a sequence
        if value is None:
            raise _no_input(doing, name, inputs)
        if value.name != name or value.dtype is None:
            continue
        if carrier(value.dtype) != said.dtype:
            hint = f"Write it as {name}={dtype_name(carrier(value.dtype))}[...]."
            raise CompilerError(doing, f"input {name!r} is {value.dtype.name.lower()} in the model", hint)
        if value.shape is not None and len(value.shape) != len(said.sizes):
            hint = f"Its shape is {list(map(str, value.shape))}."
            raise CompilerError(doing, f"input {name!r} has rank {len(value.shape)}, not {len(said.sizes)}", hint)


def fixed_tensors(doing: str, model: ir.Model, numbers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Numbers that the user fixes inputs at, as tensors of the inputs' dtypes and ranks. Raises CompilerError."""
    inputs = {value.name or "": value for value in model.graph.inputs}
    fixed = {}
    for name, given in numbers.items():
        value = inputs.get(name)
        if value is None:
            raise _no_input(doing, name, inputs)
        dtype = torch.float32 if value.dtype is None else carrier(value.dtype)
        tensor = torch.tensor(given).to(dtype)
        if value.shape is not None and len(value.shape) != tensor.dim():
            hint = f"Its shape is {list(map(str, value.shape))}."
            raise CompilerError(doing, f"input {name!r} has rank {len(value.shape)}, not {tensor.dim()}", hint)
        fixed[name] = tensor
    return fixed


def _no_input(doing: str, name: str, inputs: Mapping[str, ir.Value]) -> CompilerError:
    hint = nearest_hint(name, inputs, f"Inputs: {', '.join(inputs)}.")
    return CompilerError(doing, f"the model has no input {name!r}", hint)


def symbolic_dims(doing: str, value: ir.Value, stated: StatedInput | None) -> dict[int, str]:
    """dim index -> dim name of an input's symbolic dims."""
    if stated is not None:
        return stated.dynamic
    if value.shape is None:
        hint = f"State it: --input {value.name}=float32[batch,...]."
        raise CompilerError(doing, f"the model gives no shape for input {value.name!r}", hint)
    dims: dict[int, str] = {}
    for index, size in enumerate(value.shape):
        if isinstance(size, int) and size > 0:
            continue
        name = NOT_IN_NAMES.sub("_", str(getattr(size, "value", None) or "")).strip("_")
        if not name or name == "None" or name.lstrip("-").isdigit():
            name = "batch" if index == 0 else f"{NOT_IN_NAMES.sub('_', value.name or 'input').strip('_')}_dim_{index}"
        dims[index] = name if name.isidentifier() else f"dim_{name}"
    return dims


def example_inputs(
    doing: str, values: Sequence[ir.Value], dims: Mapping[str, Mapping[int, str]], stated: Mapping[str, StatedInput]
) -> Iterator[dict[str, Tensor]]:
    """Sets of example inputs by name, of one set of sizes after the other; the first that the model takes is used."""
    batches = _batch_dims(dims)
    for size in SIZES_TO_TRY:
        generator = torch.Generator().manual_seed(SEED)
        examples: dict[str, Tensor] = {}
        for value in values:
            name = value.name or ""
            examples[name] = (
                stated[name].example(generator)
                if name in stated
                else _example(doing, value, dims[name], batches, size, generator)
            )
        yield examples
        if all(name in stated or not dims[name] for name in examples):
            return


def _batch_dims(dims: Mapping[str, Mapping[int, str]]) -> set[str]:
    """Names of the dims that are called so, and of those that only ever come first."""
    names = {(name, index) for named in dims.values() for index, name in named.items()}
    elsewhere = {name for name, index in names if index != 0}
    return {name for name, _ in names if "batch" in name.lower() or name not in elsewhere}


def _example(
    doing: str,
    value: ir.Value,
    dims: Mapping[int, str],
    batches: Collection[str],
    free: int,
    generator: torch.Generator,
) -> Tensor:
    assert value.shape is not None
    sizes = [
        (BATCH_SIZE if dims[index] in batches else free) if index in dims else int(size)
        for index, size in enumerate(value.shape)
    ]
    if math.prod(sizes) * LARGEST_ITEM_BYTES > ALWAYS_ALLOWED_BYTES:
        hint = f"State a smaller one where the model allows it: --input {value.name}=float32[...]."
        raise CompilerError(doing, f"input {value.name!r} has the shape {sizes}, which no memory holds", hint)
    try:
        dtype = carrier(value.dtype)
    except (ValueError, AttributeError) as error:
        hint = "Inputs are tensors of numbers."
        raise CompilerError(doing, f"input {value.name!r} is {value.type}: {error}", hint) from error
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    compared = _compared_with(value)
    if not sizes and compared is not None:
        return torch.tensor(compared, dtype=dtype)
    return torch.randint(0, 2, sizes, generator=generator).to(dtype)


def _compared_with(value: ir.Value) -> int | None:
    """The number that an input is first compared with, as a sample rate is: a value that means something."""
    for node in value.consumers():
        for given in node.inputs if node.op_type == "Equal" else ():
            stored = None if given is None else given.const_value
            producer = None if given is None else given.producer()
            if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
                stored = producer.attributes["value"].as_tensor()
            if stored is not None and stored.size == 1:
                return int(stored.numpy().reshape(()))
    return None
