"""The tensors that stand for an ONNX graph's inputs: a sequence becomes one for every item, an absent optional none.

How long a sequence is, and whether an optional is there, decides the graph; so both must be said before it is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.values import names_of

if TYPE_CHECKING:
    import onnx_ir as ir


class GraphInputs:
    """The inputs of a graph that callers give. `examples` holds a tensor, a list or None for every structured one."""

    def __init__(
        self, doing: str, graph: ir.Graph, given_otherwise: Collection[str], examples: Mapping[str, Any]
    ) -> None:
        self.values: list[ir.Value] = []
        """One for every tensor, in order; those of items are called `name_0`, `name_1`, ..."""
        self._items: dict[ir.Value, int | None] = {}
        for value in graph.inputs:
            name = value.name or ""
            if name in given_otherwise or name in graph.initializers:
                continue
            count = _item_count(doing, value, examples)
            self._items[value] = count
            self.values += [value] if count is None else [_item(value, index) for index in range(count)]
        self._absent = {value for value in self._items if value.name in examples and examples[value.name] is None}
        self.values = [value for value in self.values if value not in self._absent]

    def bound(self, tensors: Sequence[Tensor]) -> dict[ir.Value, Any]:
        """The graph's inputs with what they hold, for tensors in the order of `values`."""
        if len(tensors) != len(self.values):
            raise ValueError(f"{len(tensors)} tensors for {len(self.values)} inputs")
        remaining = iter(tensors)
        held: dict[ir.Value, Any] = {}
        for value, count in self._items.items():
            if value in self._absent:
                held[value] = None
            else:
                held[value] = next(remaining) if count is None else [next(remaining) for _ in range(count)]
        return held


def spread(graph: ir.Graph, examples: Mapping[str, Any], stated: Collection[str]) -> dict[str, Any]:
    """`examples` with those of items beside their sequences, and sequences whose items are stated as lists of None."""
    found = dict(examples)
    for value in graph.inputs:
        name = value.name or ""
        if name in found:
            found.update(names_of(name, found[name]))
        elif _is_sequence(value):
            count = 0
            while f"{name}_{count}" in stated:
                count += 1
            if count:
                found[name] = [None] * count
    return found


def _item_count(doing: str, value: ir.Value, examples: Mapping[str, Any]) -> int | None:
    """How many items a sequence has; None for what is no sequence, or is absent."""
    if not _is_sequence(value):
        return None
    if value.name not in examples:
        hint = f"State its items, as in --input {value.name}_0=float32[2,3] --input {value.name}_1=float32[2,3]."
        raise CompilerError(doing, f"input {value.name!r} is a sequence, and how long it is decides the graph", hint)
    held = examples[value.name]
    return None if held is None else len(held)


def _is_sequence(value: ir.Value) -> bool:
    return "Sequence" in str(value.type)


def _item(value: ir.Value, index: int) -> ir.Value:
    import onnx_ir as ir

    element = value.type
    while element is not None and not isinstance(element, ir.TensorType):
        element = element.elem_type
    return ir.Value(name=f"{value.name}_{index}", shape=value.shape, type=element)
