"""Closure: what the subgraphs of a node read from around it, as operands for torch's higher-order operators.

Those trace every subgraph by itself, and a tensor from outside (a value, or a weight) must come in as an operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import subgraphs
from compiler.frontends.onnx_model.values import tensors_in, with_tensors

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.frontends.onnx_model.node_context import NodeContext


class Closure:
    """The tensors that `graphs`, subgraphs of one node, read from around it; each once, in order of first use."""

    def __init__(self, node: NodeContext, graphs: Sequence[ir.Graph]) -> None:
        self.node = node
        module = node.module
        read = list(dict.fromkeys(value for graph in graphs for value in _values_read(graph)))
        self._values = [value for value in read if module.constant(value) is None and value in node.environment]
        if any(
            isinstance(held, Known) and not held.is_plain for held in map(node.environment.__getitem__, self._values)
        ):
            self._values += [value for value in module.arguments if value in node.environment]  # whose sizes they are
        constants = [constant for value in read if (constant := module.constant(value)) is not None]
        self._weights = list(dict.fromkeys(one.weight for one in constants if one.weight is not None))
        self._held = [node.environment[value] for value in self._values] + [module.weight(one) for one in self._weights]
        unique = {id(tensor): tensor for tensor in tensors_in(self._held)}
        self.operands = tuple(unique.values())
        places = {key: place for place, key in enumerate(unique)}
        self._places = [places[id(tensor)] for tensor in tensors_in(self._held)]

    def run(self, graph: ir.Graph, inputs: Sequence[Any], operands: Sequence[Tensor]) -> list[Any]:
        """What `graph` gives for its own `inputs`, with `operands` in the place of `self.operands`."""
        held = with_tensors(self._held, iter([operands[place] for place in self._places]))
        values = dict(zip(self._values, held, strict=False))
        weights = dict(zip(self._weights, held[len(self._values) :], strict=True))
        return self.node.run_subgraph(graph, inputs, values, weights)


def unaliased(results: Sequence[Tensor], operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Results that share no memory with operands or with each other, which higher-order operators demand."""
    seen = {_storage(one) for one in operands}
    unshared = []
    for result in results:
        storage = _storage(result)
        if storage in seen:
            result = result.clone()
            storage = _storage(result)
        seen.add(storage)
        unshared.append(result)
    return tuple(unshared)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _values_read(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value that the nodes and outputs of a graph and its subgraphs read, whoever makes it."""
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            for inner in subgraphs(attribute):
                yield from _values_read(inner)
    yield from (value for value in graph.outputs if value is not None)
