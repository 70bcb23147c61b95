"""A part of a graph with some units taken out of its layers: which positions of which dim are left, node by node.

    linear W [out, in]  ->  reshape, transpose, norm, attention, ...  ->  linear V [width, inner]
    W[kept]             ->  the same nodes at the sizes that are left  ->  V[:, kept columns]

Every value either is as it was or lacks positions of one dim. How an operator hands those on is a rule
(compiler/pruning/rules.py); an operator that has none ends the walk with a reason, so that nothing is narrowed wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compiler.patterns import all_arguments, argument, aten, has_tensor, is_call, upstream, value
from compiler.program import Program

MOST_NODES_BROUGHT = 32


@dataclass(frozen=True)
class Kept:
    """The positions of one dim, counted from the front, that are left; ascending."""

    dim: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class NarrowLayer:
    """What becomes of a linear layer or convolution: its name in the copy, weight and bias as they are left, and which
    outputs these are (None: all).
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    outputs: tuple[int, ...] | None = None


class NarrowingError(Exception):
    """What cannot be narrowed, why, and where."""

    def __init__(self, reason: str, node: fx.Node) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node


def narrowed(
    program: Program,
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    output: fx.Node,
    layers: Mapping[fx.Node, NarrowLayer],
) -> fx.GraphModule:
    """A module from the values of `inputs` to that of `output`, with `layers` in the place of those in the graph.

    `nodes` are those of the part in graph order. Raises NarrowingError where units cannot be followed, and where some
    would be missing in the output.
    """
    part = NarrowedPart(program, inputs, layers)
    for node in nodes:
        if node.op == "call_function" and not part.is_weight_view(node):
            part.copy(node)
    if part.kept.get(output) is not None:
        raise NarrowingError("units would be missing in what it gives", output)
    part.graph.output(part.new[output])
    module = fx.GraphModule(part.root, part.graph, class_name="Narrowed")
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


class LayerModule(nn.Module):
    """A linear layer or convolution of a graph, with numbers of its own."""

    def __init__(self, node: fx.Node, weight: Tensor, bias: Tensor | None) -> None:
        """`node` is the call in the graph: the operator and its settings are taken from it."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self._operator: Any = node.target
        self._settings = list(all_arguments(node).values())[3:]

    def forward(self, x: Tensor) -> Tensor:
        """x as the layer takes it."""
        y: Tensor = self._operator(x, self.weight, self.bias, *self._settings)
        return y


class NarrowedPart:
    """The copy under way: `new` has the copies, `kept` what is left of those values that lack something."""

    def __init__(self, program: Program, inputs: Sequence[fx.Node], layers: Mapping[fx.Node, NarrowLayer]) -> None:
        self.program, self.layers = program, layers
        self.root, self.graph = nn.Module(), fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.kept: dict[fx.Node, Kept | tuple[Kept | None, ...]] = {}
        for node in inputs:
            self.new[node] = self.graph.placeholder(node.name)

    def is_weight_view(self, node: fx.Node) -> bool:
        """Whether `node` only brings the weight of a layer into shape."""
        readers = [user for user in node.users if user in self.layers]
        return bool(readers) and all(argument(user, "weight") is node for user in readers)

    def copy(self, node: fx.Node) -> None:
        """Copy one node, at the sizes that are left."""
        from compiler.pruning.rules import rule_of

        if node in self.layers:
            self._copy_layer(node, self.layers[node])
        elif any(self.kept.get(source) is not None for source in node.all_input_nodes):
            rule = rule_of(node)
            if rule is None:
                raise NarrowingError(f"{node.target} has no rule for fewer units", node)
            rule(self, node)
        else:
            self.new[node] = self.graph.node_copy(node, self.read)

    def narrowed(self, node: Any) -> Kept | None:
        """What is left of a value, None where it is whole. Raises NarrowingError for a list of values."""
        found = self.kept.get(node) if isinstance(node, fx.Node) else None
        if isinstance(found, tuple):
            raise NarrowingError("it is one of several values", node)
        return found

    def read(self, node: fx.Node) -> fx.Node:
        """The copy of a value, brought along where it depends on nothing that flows in."""
        if node in self.new:
            return self.new[node]
        if node.op == "get_attr" and has_tensor(node):
            self.new[node] = self._stored_like(node, self.program.weight(node))
            return self.new[node]
        sources = list(upstream(node, lambda one: False))
        if len(sources) > MOST_NODES_BROUGHT or any(one.op not in ("call_function", "get_attr") for one in sources):
            raise NarrowingError(f"it reads {node.name} from outside", node)
        self.new[node] = self.graph.node_copy(node, self.read)
        return self.new[node]

    def select(self, node: fx.Node, kept: Kept) -> fx.Node:
        """The positions of a whole value that are left."""
        if node.op == "get_attr":
            return self._stored_like(node, self.program.weight(node).detach().index_select(kept.dim, _index(kept)))
        index = self._store(f"{node.name}_kept", _index(kept), learns=False)
        return self.call(aten.index_select.default, self.read(node), kept.dim, index)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call in the copy."""
        called: fx.Node = self.graph.call_function(target, args, kwargs)
        return called

    def _stored_like(self, node: fx.Node, tensor: Tensor) -> fx.Node:
        learns = isinstance(self.program.weight(node), nn.Parameter)
        return self._store(str(node.target).replace(".", "_"), tensor, learns=learns)

    def _store(self, name: str, tensor: Tensor, *, learns: bool) -> fx.Node:
        """A node that reads `tensor`, a parameter of the copy where it may learn, or else a buffer."""
        free = self._free(name)
        if learns:
            self.root.register_parameter(free, nn.Parameter(tensor.detach().clone()))
        else:
            self.root.register_buffer(free, tensor.detach().clone())
        return self.graph.get_attr(free)

    def _free(self, name: str) -> str:
        free, count = name, 0
        while hasattr(self.root, free):
            count += 1
            free = f"{name}_{count}"
        return free

    def _copy_layer(self, node: fx.Node, layer: NarrowLayer) -> None:
        source = argument(node, "input")
        dim = value(source).dim() - 1 if is_call(node, aten.linear.default) else 1
        left, given = self.narrowed(source), layer.weight.shape[1]
        if left is not None and (left.dim != dim or len(left.positions) != given):
            raise NarrowingError(f"its weight takes {given} of other units than it is given", node)
        if left is None and value(source).shape[dim] != given:
            raise NarrowingError(f"its weight takes {given} units of {value(source).shape[dim]}", node)
        name = self._free(layer.name)
        self.root.add_module(name, LayerModule(node, layer.weight, layer.bias))
        self.new[node] = self.graph.call_module(name, (self.read(source),))
        if layer.outputs is not None:
            out_dim = value(node).dim() - 1 if is_call(node, aten.linear.default) else 1
            self.kept[node] = Kept(out_dim, layer.outputs)


def _index(kept: Kept) -> Tensor:
    return torch.tensor(kept.positions, dtype=torch.int64)
