"""Program, the one intermediate representation: an ATen-level FX graph, its weights, named inputs, symbolic dims.

Frontends make one, passes edit it in place, backends lower it. Weights are `get_attr` nodes whose targets are dotted
names of the state dict; every node carries its value's symbolic shape and dtype in `meta["val"]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from compiler.errors import CompilerError
from compiler.propagation import mark_current, propagate_values
from compiler.regions import close_regions, copy_regions, drop_unused_modules
from compiler.runtime.manifest import DimensionRange
from compiler.states import State, incremental_inputs


@dataclass(frozen=True)
class Dimension:
    """A symbolic dimension, for instance `batch`, from `minimum` to `maximum` (None: no limit) inclusive.

    Its sizes are multiples of `multiple`, as where a model halves an image five times and joins the halves again.
    """

    name: str
    minimum: int = 1
    maximum: int | None = None
    multiple: int = 1

    @property
    def range(self) -> DimensionRange:
        """The sizes it may have."""
        return DimensionRange(self.minimum, self.maximum, self.multiple)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (as in `float32`) and shape of one input or output."""

    name: str
    dtype: str
    shape: tuple[int | Dimension, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class TrailEntry:
    """One thing that was done to a Program: a pass with its options, and what it changed."""

    name: str
    options: dict[str, Any]
    changed: tuple[str, ...] = ()


@dataclass
class Program:
    """A captured model.

    `example_inputs` are small real tensors in the order of `inputs`, with every symbolic dim at least 2. `role` is what
    the frontend found the model to be (encoder, causal-lm, classifier, seq2seq) or unknown. `tokenizer` is a folder or
    file to read the tokenizer from. `source` names the model for people. `description` and `metadata` are the model
    file's own words, such as the names of its classes; backends pass them on. `states` are what an incremental Program
    keeps between calls (compiler/states.py). `context_length` is the most tokens a language model was made for.
    """

    graph_module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example_inputs: tuple[Tensor, ...]
    role: str = "unknown"
    tokenizer: Path | None = None
    source: str = ""
    trail: list[TrailEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    description: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    states: tuple[State, ...] = ()
    context_length: int | None = None

    @property
    def graph(self) -> fx.Graph:
        """The graph that passes edit."""
        return self.graph_module.graph

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The symbolic dims of the inputs by name, in order of appearance."""
        return {d.name: d for spec in self.inputs for d in spec.shape if isinstance(d, Dimension)}

    def placeholders(self) -> list[fx.Node]:
        """The input nodes, in order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def output_node(self) -> fx.Node:
        """The node that returns the tuple of outputs."""
        return self.graph.output_node()

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Evaluate eagerly, without gradients."""
        with torch.no_grad():
            outputs = self.graph_module(*inputs)
        return tuple(outputs)

    def complete(self, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A batch of data as inputs: an incremental Program reads it from the start and gives every token's logits."""
        return incremental_inputs(self, batch) if self.states else tuple(batch)

    def copy(self) -> Program:
        """A Program with a graph of its own and the same weight tensors."""
        graph = fx.Graph()
        returned = graph.graph_copy(self.graph, {})
        output = graph.output(returned)
        output.meta = dict(self.output_node().meta)
        module = fx.GraphModule(self.graph_module, graph, class_name="Program")
        module.meta = dict(self.graph_module.meta)
        copy_regions(module)
        return replace(self, graph_module=module, trail=list(self.trail), notes=list(self.notes))

    def weight(self, node: fx.Node | str) -> Tensor:
        """The tensor behind a `get_attr` node, or behind a dotted weight name."""
        value = attribute(self.graph_module, node if isinstance(node, str) else str(node.target))
        if not isinstance(value, Tensor):
            raise TypeError(f"{node} is {type(value).__name__}, not a tensor")
        return value

    def weights(self) -> dict[str, Tensor]:
        """Every weight that the graph or a grafted module uses, by dotted name; a tied weight appears once."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, value in _used_tensors(self.graph_module):
            if id(value) not in seen:
                seen.add(id(value))
                found[name] = value
        return found

    def set_weight(self, name: str, value: Tensor, *, trainable: bool = True) -> None:
        """Put a tensor under a dotted name, making the modules on the way. Integer tensors become buffers."""
        *path, leaf = name.split(".")
        module: nn.Module = self.graph_module
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        if hasattr(module, leaf):
            delattr(module, leaf)
        if trainable and value.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(value.detach()))
        else:
            module.register_buffer(leaf, value.detach())

    def free_name(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, `wanted_2`, ... where that dotted name is taken."""
        name, count = wanted, 0
        while _has_attribute(self.graph_module, name):
            count += 1
            name = f"{wanted}_{count}"
        return name

    def tidy(self) -> None:
        """After edits: check the graph, drop the weights that nothing uses, recompile."""
        self.graph.lint()
        drop_unused_modules(self.graph_module)
        _drop_unused_tensors(self.graph_module)
        self.graph_module.recompile()

    def refresh(self) -> None:
        """`tidy`, then bring every `meta["val"]` up to date."""
        self.tidy()
        propagate_values(self.graph_module)

    def export(self) -> ExportedProgram:
        """Trace once more into an ExportedProgram with the dynamic dims kept: the lowering boundary."""
        dynamic = tuple(
            {index: torch.export.Dim.AUTO for index, dim in enumerate(spec.shape) if isinstance(dim, Dimension)}
            for spec in self.inputs
        )
        exported = torch.export.export(self.graph_module, self.example_inputs, dynamic_shapes=dynamic, strict=False)
        self._require_dynamic(exported)
        return exported

    def flattened(self) -> Program:
        """The same Program with modules that grafts inserted traced into plain nodes."""
        module = plain_graph_module(self.export())
        _drop_metadata_checks(module.graph)
        module.recompile()
        mark_current(module)
        return replace(self, graph_module=module, trail=list(self.trail), notes=list(self.notes))

    def text(self) -> str:
        """The stable, readable form that golden tests and `compile diff` compare."""
        from compiler.program_text import program_text

        return program_text(self)

    def _require_dynamic(self, exported: ExportedProgram) -> None:
        lost = []
        placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
        for spec, node in zip(self.inputs, placeholders[len(placeholders) - len(self.inputs) :], strict=True):
            for dim, size in zip(spec.shape, node.meta["val"].shape, strict=True):
                if isinstance(dim, Dimension) and str(size).isdigit():  # a SymInt may have turned constant
                    lost.append(f"{spec.name}: {dim} became {size}")
        if lost:
            problem = f"a dynamic dim turned static ({'; '.join(lost)})"
            raise CompilerError("exporting the program", problem, "A pass wrote a fixed size into the graph.")


def plain_graph_module(exported: ExportedProgram) -> fx.GraphModule:
    """The unlifted graph of `exported` with tensors as positional arguments and a tuple as the result."""
    unlifted = exported.module(check_guards=False)
    assert isinstance(unlifted, fx.GraphModule)
    graph = unlifted.graph
    graph.set_codegen(fx.graph.CodeGen())
    output = next(iter(reversed(graph.nodes)))
    output.args = (tuple(_tensors_in(output.args)),)
    module = fx.GraphModule(unlifted, graph, class_name="Program")
    close_regions(module)
    module.recompile()
    return module


def tensor_spec(name: str, value: Tensor, dimensions: dict[str, Dimension]) -> TensorSpec:
    """The spec of a (fake) tensor; `dimensions` maps the shape environment's symbols to named dims."""

    def dim(size: int | torch.SymInt) -> int | Dimension:
        if isinstance(size, int):
            return size
        expression = str(size)
        if expression in dimensions:
            return dimensions[expression]
        for symbol, named in sorted(dimensions.items(), key=lambda item: -len(item[0])):
            expression = expression.replace(symbol, named.name)
        return Dimension(expression)

    return TensorSpec(name, dtype_name(value.dtype), tuple(dim(size) for size in value.shape))


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def attribute(module: nn.Module, target: str) -> Any:
    """What stands under a dotted name."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes that the tensors take, each counted once."""
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())


def _drop_metadata_checks(graph: fx.Graph) -> None:
    """Erase the checks of dtype and device that tracing writes beside every cast."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _has_attribute(module: nn.Module, target: str) -> bool:
    try:
        attribute(module, target)
    except AttributeError:
        return False
    return True


def _tensors_in(value: Any) -> Iterator[fx.Node]:
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)


def _used_tensors(graph_module: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    for node in graph_module.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        value = attribute(graph_module, str(node.target))
        if isinstance(value, Tensor):
            yield str(node.target), value
        elif isinstance(value, nn.Module):
            for name, tensor in [*value.named_parameters(), *value.named_buffers()]:
                yield f"{node.target}.{name}", tensor


def _drop_unused_tensors(graph_module: fx.GraphModule) -> None:
    used = {name for name, _ in _used_tensors(graph_module)}
    called = [f"{node.target}." for node in graph_module.graph.nodes if node.op in ("call_module", "get_attr")]
    for module_name, module in list(graph_module.named_modules()):
        for registry in (module._parameters, module._buffers):
            for leaf in list(registry):
                name = f"{module_name}.{leaf}" if module_name else leaf
                if name not in used and not any(name.startswith(prefix) for prefix in called):
                    del registry[leaf]
