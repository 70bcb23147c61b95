"""ONNX model -> Program: what is unsupported is listed, inputs that decide shapes are fixed, the rest is traced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.errors import CompilerError
from compiler.frontends.input_texts import StatedInput
from compiler.frontends.onnx_model.example_inputs import example_inputs, symbolic_dims
from compiler.frontends.onnx_model.interpreter import OnnxModule, operator_label
from compiler.frontends.onnx_model.memory_guard import require_room
from compiler.frontends.onnx_model.node_context import ValueNeededError, subgraphs
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
    values: Mapping[str, Tensor] | None = None,
) -> Program:
    """Trace an ONNX model into a Program.

    `stated` is what the user says of inputs. `values` are example values by input name; an input among them whose
    numbers decide a shape becomes fixed at that value, and a note says so.
    Raises CompilerError: with every unsupported operator, or with the node at fault.
    """
    require_operators(doing, model)
    values = dict(values or {})
    fixed: dict[str, Tensor] = {}
    while True:
        module = OnnxModule(model, doing, fixed)
        try:
            program = _captured(module, source, dict(stated or {}), values)
            break
        except ValueNeededError as error:
            deciding = [one for one in _inputs_behind(error.value, model) if one in values and one not in fixed]
            if not deciding:
                raise
            fixed.update({name: values[name] for name in deciding})
    program.notes += module.notes
    program.notes += [f"input {name!r} decides shapes: fixed at {value.tolist()}" for name, value in fixed.items()]
    return program


def require_operators(doing: str, model: ir.Model) -> None:
    """Raise CompilerError naming every operator that the table lacks, its count and the first node that uses it."""
    module = OnnxModule.__new__(OnnxModule)
    torch.nn.Module.__init__(module)
    module.model = model
    module._versions = {("" if domain == "ai.onnx" else domain): v for domain, v in model.opset_imports.items()}
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for node in every_node(model.graph):
        if module.find(node) is None:
            label = operator_label(node)
            counts[label] += 1
            first.setdefault(label, module.node_name(node))
    if counts:
        listed = ", ".join(f"{label} ({count}, first {first[label]!r})" for label, count in counts.most_common())
        noun = "operator is" if len(counts) == 1 else "operators are"
        hint = "Export the model with standard operators, or add functions for these in compiler/frontends/onnx_model."
        raise CompilerError(doing, f"{len(counts)} {noun} not read: {listed}", hint)


def every_node(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph and of its subgraphs."""
    for node in graph:
        yield node
        for attribute in node.attributes.values():
            for inner in subgraphs(attribute):
                yield from every_node(inner)


def _captured(module: OnnxModule, source: str, stated: dict[str, StatedInput], values: Mapping[str, Tensor]) -> Program:
    arguments = module.arguments
    names = {one.name or "": _identifier(one.name or "input", index) for index, one in enumerate(arguments)}
    if all(name in values for name in names):
        dims: dict[str, dict[int, str]] = {name: {} for name in names}
        examples = {name: values[name] for name in names}
    else:
        dims = {
            name: symbolic_dims(module.doing, one, stated.get(name)) for one in arguments for name in [one.name or ""]
        }
        examples = _examples_that_run(module, dims, stated)
    outputs = module.model.graph.outputs
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
    if len(program.outputs) == len(outputs):
        program.outputs = tuple(
            type(spec)(value.name or spec.name, spec.dtype, spec.shape)
            for value, spec in zip(outputs, program.outputs, strict=True)
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


def _inputs_behind(value: ir.Value, model: ir.Model) -> list[str]:
    """The graph inputs that a value is computed from."""
    waiting, seen, found = [value], set(), []
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        producer = one.producer()
        if producer is not None:
            waiting += [given for given in producer.inputs if given is not None]
        elif one in model.graph.inputs and one.name:
            found.append(one.name)
    return found


def _identifier(name: str, index: int) -> str:
    cleaned = "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in name)
    return cleaned if cleaned.isidentifier() else f"input_{index}"
