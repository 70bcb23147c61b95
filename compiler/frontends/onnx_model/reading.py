"""ONNX model -> Program: what is unsupported is listed, inputs that decide shapes are fixed, the rest is traced."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compiler.errors import CompilerError
from compiler.frontends.input_texts import StatedInput
from compiler.frontends.onnx_model.example_inputs import check_stated, example_inputs, fixed_tensors, symbolic_dims
from compiler.frontends.onnx_model.graph_inputs import spread
from compiler.frontends.onnx_model.interpreter import OnnxModule
from compiler.frontends.onnx_model.memory_guard import require_room
from compiler.frontends.onnx_model.node_context import ValueNeededError, subgraphs
from compiler.frontends.onnx_model.unread_operators import every_node, require_operators
from compiler.frontends.torch_export import capture
from compiler.program import Program

if TYPE_CHECKING:
    import onnx_ir as ir


def program_from_onnx(
    model: ir.Model,
    *,
    doing: str,
    source: str,
    stated: Mapping[str, StatedInput] | None = None,
    values: Mapping[str, Any] | None = None,
    fixed_numbers: Mapping[str, Any] | None = None,
) -> Program:
    """Trace an ONNX model into a Program.

    `stated` is what the user says of inputs, `fixed_numbers` are the numbers of inputs that the user fixes. `values`
    are example values by input name, lists for sequences; an input among them whose numbers decide a shape becomes
    fixed at that value, and a note says so.
    Raises CompilerError: with every unsupported operator, or with the node at fault.
    """
    require_operators(doing, model)
    values = spread(model.graph, values or {}, stated or {})
    fixed = fixed_tensors(doing, model, fixed_numbers or {})
    check_stated(doing, model, stated or {})
    notes = [f"input {name!r} is fixed at {value.tolist()}" for name, value in fixed.items()]
    while True:
        module = OnnxModule(model, doing, fixed, values)
        try:
            program = _captured(module, source, dict(stated or {}), values)
            break
        except ValueNeededError as error:
            behind = [one for one in _inputs_behind(error.value, model) if one not in fixed]
            deciding = [one for one in behind if isinstance(values.get(one), Tensor)]
            if not deciding:
                raise _with_inputs_to_state(error, model) from None
            fixed.update({name: values[name] for name in deciding})
            notes += [f"input {name!r} decides shapes: fixed at {values[name].tolist()}" for name in deciding]
    larger = [dim for dim in program.dimensions.values() if dim.minimum > 1]
    notes += [f"dim {dim.name!r} is at least {dim.minimum}: below, the model computes otherwise" for dim in larger]
    program.notes += [*sorted(module.notes), *notes]
    program.description = model.doc_string or model.graph.doc_string or ""
    program.metadata = {str(key): str(value) for key, value in model.metadata_props.items()}
    return program


def _captured(module: OnnxModule, source: str, stated: dict[str, StatedInput], values: Mapping[str, Tensor]) -> Program:
    arguments = module.arguments
    names: dict[str, str] = {}
    for index, one in enumerate(arguments):
        names[one.name or ""] = _free(_identifier(one.name or "input", index), names.values())
    if all(name in values for name in names):
        dims: dict[str, dict[int, str]] = {name: {} for name in names}
        examples = {name: values[name] for name in names}
    else:
        dims = {
            name: symbolic_dims(module.doing, one, stated.get(name)) for one in arguments for name in [one.name or ""]
        }
        examples = _examples_that_run(module, dims, stated)
    program = capture(
        module,
        {names[name]: examples[name] for name in names},
        source=source,
        dynamic={names[name]: dims[name] for name in names},
        clone=False,
    )
    program.inputs = tuple(
        type(spec)(name, spec.dtype, spec.shape) for name, spec in zip(names, program.inputs, strict=True)
    )
    taken = list(names)
    for name in module.output_names:
        taken.append(_free(name, taken))  # the graph may return an input, or one value twice
    program.outputs = tuple(
        type(spec)(name, spec.dtype, spec.shape)
        for name, spec in zip(taken[len(names) :], program.outputs, strict=True)
    )
    return program


def _examples_that_run(
    module: OnnxModule, dims: Mapping[str, Mapping[int, str]], stated: Mapping[str, StatedInput]
) -> dict[str, Tensor]:
    """The first example inputs that the model takes. Raises what the first ones raised where it takes none."""
    failure: CompilerError | None = None
    for examples in example_inputs(module.doing, module.arguments, dims, stated):
        require_room(module.doing, module, examples)
        try:
            with torch.no_grad():
                module(*examples.values())
        except ValueNeededError:
            raise
        except CompilerError as error:
            failure = failure or error
            continue
        return examples
    assert failure is not None
    raise failure


def _with_inputs_to_state(error: ValueNeededError, model: ir.Model) -> CompilerError:
    """The same error, with what to say on the command line where inputs decide the value."""
    behind = _inputs_behind(error.value, model)
    if not behind:
        return error
    told = " ".join(f"--input {name}=..." for name in behind)
    hint = f"It follows from an input that can be fixed: {told} with a number or a list such as [1,3,224,224]."
    return CompilerError(error.doing, error.problem, hint, error.node)


def _inputs_behind(value: ir.Value, model: ir.Model) -> list[str]:
    """The graph inputs that a value is computed from."""
    handed_in = {
        inner: given
        for node in every_node(model.graph)
        for attribute in node.attributes.values()
        for graph in subgraphs(attribute)
        for inner, given in zip(graph.inputs, node.inputs, strict=False)
        if given is not None
    }
    waiting, seen, found = [value], set(), []
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        producer = one.producer()
        if producer is not None:
            waiting += [given for given in producer.inputs if given is not None]
        elif one in handed_in:
            waiting.append(handed_in[one])
        elif one in model.graph.inputs and one.name:
            found.append(one.name)
    return found


def _free(wanted: str, taken: Collection[str]) -> str:
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def _identifier(name: str, index: int) -> str:
    cleaned = "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in name)
    return cleaned if cleaned.isidentifier() else f"input_{index}"
