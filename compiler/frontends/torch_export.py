"""Capture a PyTorch module into a Program with `torch.export`, and prove the capture against the module itself.

Before:  an nn.Module and example inputs by name
After:   a Program: plain FX graph, dotted weight names, named inputs and outputs, batch and sequence dynamic
Proof:   the Program gives the module's own numbers at the example sizes, at size 1 and at a larger size of each dynamic
         dim. A dim that the module's code fixes becomes static, and a note says so.
The module is left as it was: weights are cloned (unless the caller gives them away), modes and buffers are put back.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from compiler.errors import CompilerError
from compiler.frontends.dynamic_dims import DynamicDims, default_dynamic_dims, dim_sizes, held_static, resized
from compiler.frontends.traced_module import PositionalCall, Readout, TracedModule, first_line, trace
from compiler.program import Dimension, Program, attribute, tensor_spec

MODULE_PREFIX = "module."
SCOPE = "module_path"
"""Key under which code that is being traced can annotate operators with the path of the module they belong to."""


def capture(
    module: nn.Module,
    example_inputs: Mapping[str, Tensor],
    *,
    source: str,
    role: str = "unknown",
    tokenizer: Path | None = None,
    dynamic: DynamicDims | None = None,
    output_names: Sequence[str] | None = None,
    readout: Readout | None = None,
    clone: bool = True,
) -> Program:
    """Trace `module` called with `example_inputs` (by argument name) into a Program.

    `dynamic` gives, per input, dim index -> dim name; by default dim 0 is `batch` and dim 1 of integer inputs of rank 2
    is `sequence`. Dims of one name have one size. `readout` makes the Program's outputs from the
    module's, in the graph. `clone=False` hands the weights over instead of copying them.
    Raises CompilerError when the module does not run on its inputs, cannot be traced, or the trace gives other numbers.
    """
    doing = f"capturing {source}"
    inputs = _checked_inputs(doing, example_inputs)
    dims = _checked_dims(doing, inputs, default_dynamic_dims(inputs) if dynamic is None else dynamic)
    inputs = resized(inputs, dims, {name: 2 for name, size in dim_sizes(inputs, dims).items() if size < 2})
    notes: list[str] = []
    with _evaluating(module):
        call = PositionalCall(module, tuple(inputs), _accepts_keywords(module, inputs), readout)
        names = _output_names(doing, _run_module(doing, call, inputs), output_names)
        while True:
            traced = trace(doing, call, inputs, dims)
            lost = traced.fixed_by_tracing() or traced.disproved()
            if not lost:
                break
            notes += [f"dim {name!r} is fixed at {traced.sizes[name]}: {reason}" for name, reason in lost.items()]
            dims = held_static(dims, lost)
        program_dims = _proven_dims(traced)
    program = _program(traced, names, program_dims, clone)
    program.source, program.role, program.tokenizer = source, role, tokenizer
    program.notes.extend(notes)
    return program


def _proven_dims(traced: TracedModule) -> dict[str, Dimension]:
    """The dims by name, with the sizes for which the trace was proven or that it states."""
    smallest = traced.smallest_sizes()
    return {
        name: Dimension(name, smallest[name], maximum, traced.multiples.get(name, 1))
        for name, (_, maximum) in traced.ranges().items()
    }


def _program(traced: TracedModule, output_names: Sequence[str], named: dict[str, Dimension], clone: bool) -> Program:
    graph_module = _with_own_weights(traced.graph_module, traced.call.module, clone)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    symbols = _share_symbols(placeholders, traced)
    dimensions = {str(symbol): named[name] for name, symbol in symbols.items()}
    for name, node in zip(traced.inputs, placeholders, strict=True):
        _rename(node, name)
    specs = [
        tensor_spec(name, node.meta["val"], dimensions) for name, node in zip(traced.inputs, placeholders, strict=True)
    ]
    program = Program(graph_module, tuple(specs), (), tuple(traced.inputs.values()))
    program.refresh()
    values = [node.meta["val"] for node in program.output_node().args[0]]  # type: ignore[union-attr]
    program.outputs = tuple(
        tensor_spec(name, value, dimensions) for name, value in zip(output_names, values, strict=True)
    )
    return program


def _share_symbols(placeholders: list[fx.Node], traced: TracedModule) -> dict[str, torch.SymInt]:
    """Give dims of one name one symbol: tracing made one for every input that nothing compares with another."""
    symbols: dict[str, torch.SymInt] = {}
    for name, node in zip(traced.inputs, placeholders, strict=True):
        value = node.meta["val"]
        shape = list(value.shape)
        for index, dim in traced.dims.get(name, {}).items():
            shape[index] = symbols.setdefault(dim, shape[index])
        with value.fake_mode:
            node.meta["val"] = torch.empty(shape, dtype=value.dtype, device=value.device)
    return symbols


def _with_own_weights(graph_module: fx.GraphModule, module: nn.Module, clone: bool) -> fx.GraphModule:
    """The graph with weights under the user's own names, each tensor once, and none that nothing uses."""
    first_names: dict[int, str] = {}
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        first_names.setdefault(id(tensor), name)
    graph = graph_module.graph
    _drop_traces_of_tracing(graph)
    values: dict[str, Any] = {}
    kept: dict[str, fx.Node] = {}
    own: dict[int, Any] = {}
    for node in list(graph.nodes):
        node.meta = _kept_meta(node)
        if node.op != "get_attr":
            continue
        if not node.users:
            graph.erase_node(node)
            continue
        value = attribute(graph_module, str(node.target))
        target = first_names.get(id(value), str(node.target).removeprefix(MODULE_PREFIX))
        if target in kept:
            node.replace_all_uses_with(kept[target])
            graph.erase_node(node)
            continue
        if isinstance(value, Tensor):
            value = own.setdefault(id(value), _cloned(value) if clone else value)
        node.target = target
        _rename(node, target.replace(".", "_"))
        kept[target], values[target] = node, value
    return fx.GraphModule(values, graph, class_name="Program")


def _drop_traces_of_tracing(graph: fx.Graph) -> None:
    """Drop assertions of the dtypes that tracing saw, which a pass may change; detach_, which does nothing without
    gradients and fails on views; and what no output needs.
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is torch.ops.aten.detach_.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _rename(node: fx.Node, name: str) -> None:
    node._rename(name)
    if node.op == "placeholder":
        node.target = node.name


def _kept_meta(node: fx.Node) -> dict[str, Any]:
    """The value and the module path as the user's module knows it; the rest of what tracing records is not needed."""
    meta = {key: node.meta[key] for key in ("val",) if key in node.meta}
    stack = node.meta.get("nn_module_stack")
    if stack:
        inner = [(key, (path, kind)) for key, (path, kind) in stack.items() if path]
        strip = len(MODULE_PREFIX)
        meta["nn_module_stack"] = {key: (path[strip:] if path != "module" else "", kind) for key, (path, kind) in inner}
    noted = node.meta.get("custom") or {}
    if noted.get(SCOPE):  # a module that runs another format's graph knows the path there
        meta["nn_module_stack"] = {noted[SCOPE]: (noted[SCOPE], "")}
    return meta


def _cloned(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; the modes of all submodules and the values of all buffers put back afterwards."""
    modes = {name: part.training for name, part in module.named_modules()}
    buffers = {name: (buffer, buffer._version, buffer.clone()) for name, buffer in module.named_buffers()}
    module.eval()
    try:
        yield
    finally:
        for name, part in module.named_modules():
            part.training = modes.get(name, part.training)
        with torch.no_grad():
            for buffer, version, before in buffers.values():
                if buffer._version != version:
                    buffer.copy_(before)


def _checked_inputs(doing: str, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            hint = "Example inputs are tensors; fix other arguments inside the module."
            raise CompilerError(doing, f"example input {name!r} is {type(value).__name__}, not a tensor", hint)
        if not name.isidentifier():
            hint = "Use letters, digits and underscores."
            raise CompilerError(doing, f"input name {name!r} is not an identifier", hint)
    return {name: value.detach() for name, value in inputs.items()}


def _checked_dims(doing: str, inputs: dict[str, Tensor], dims: DynamicDims) -> DynamicDims:
    listed = ", ".join(f"{name} (rank {tensor.dim()})" for name, tensor in inputs.items())
    for name, named in dims.items():
        if name not in inputs:
            raise CompilerError(doing, f"dynamic dims for {name!r}, which is no input", f"Inputs: {listed}.")
        for index in named:
            if not 0 <= index < inputs[name].dim():
                raise CompilerError(doing, f"input {name!r} has no dim {index}", f"Inputs: {listed}.")
    for name, sizes in dim_sizes(inputs, dims, every=True).items():
        if len(set(sizes)) > 1:
            problem = f"example inputs give dim {name!r} the sizes {', '.join(map(str, sizes))}"
            raise CompilerError(doing, problem, "Dims of one name have one size; give them different names otherwise.")
    return dims


def _accepts_keywords(module: nn.Module, inputs: dict[str, Tensor]) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    keywords = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return set(inputs) <= keywords


def _run_module(doing: str, call: PositionalCall, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        with torch.no_grad():
            outputs = call.named(*inputs.values())
    except CompilerError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for name, t in inputs.items())
        hint = "Check the shapes, dtypes and names of the inputs; --input name=dtype[shape] states them."
        raise CompilerError(
            doing, f"the model fails on its example inputs ({shapes}): {first_line(error)}", hint
        ) from error
    if not outputs:
        raise CompilerError(
            doing, "the model returns no tensor", "A model returns a tensor, or a tuple or dict of tensors."
        )
    return outputs


def _output_names(doing: str, outputs: dict[str, Tensor], wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted is None:
        return tuple(outputs)
    if len(wanted) != len(outputs):
        problem = f"{len(wanted)} output names for {len(outputs)} outputs"
        raise CompilerError(doing, problem, f"The model returns: {', '.join(outputs)}.")
    return tuple(wanted)
