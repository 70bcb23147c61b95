"""Finds half of a value whose last dim says everything twice, such as cos(cat(angles, angles)) of rotary embeddings.

The half is computed from half of what the value is computed from: cos(cat(f, f)) gives cos(f), and the cosine of the
other half is not taken. Where numbers are stored, they are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from compiler.patterns import (
    CASTS,
    COPIES,
    RESHAPES,
    argument,
    aten,
    has_tensor,
    insert_call,
    is_call,
    is_weight,
    operands,
    static_size,
    value,
)
from compiler.program import Program

Make = Callable[[], fx.Node]
"""Gives the node of a half, which is made then; that there is one is known before."""

ALONG_OTHER_DIMS = (aten.index.Tensor, aten.index_select.default, aten.embedding.default, aten.expand.default)


class RepeatedHalves:
    """Half of the values of one Program: the first, or every second number where `interleaved`. Each is made once."""

    def __init__(self, program: Program, interleaved: bool) -> None:
        self._program = program
        self._interleaved = interleaved
        self._made: dict[fx.Node, fx.Node] = {}

    def of(self, node: fx.Node) -> Make | None:
        """What makes half of `node`, or None where it is not known to say everything twice."""
        width = static_size(node, -1) if has_tensor(node) and value(node).dim() else None
        if width is None or width % 2:
            return None
        found = self._repeated(node, width) or self._stored(node) or self._computed(node, width)
        return None if found is None else lambda: self._once(node, found)

    def _once(self, node: fx.Node, make: Make) -> fx.Node:
        if node not in self._made:
            self._made[node] = make()
        return self._made[node]

    def _repeated(self, node: fx.Node, width: int) -> Make | None:
        """cat((f, f)) and repeat(f); where interleaved, repeat_interleave(f, 2) and stack((f, f)).flatten()."""
        rank = value(node).dim()
        if self._interleaved:
            return self._repeated_in_turn(node, rank, width)
        if is_call(node, aten.cat.default) and argument(node, "dim") in (-1, rank - 1):
            parts = argument(node, "tensors")
            return (lambda: parts[0]) if len(parts) == 2 and parts[0] is parts[1] else None
        if is_call(node, aten.repeat.default):
            source = operands(node)[0]
            twice = [1] * (rank - 1) + [2]
            return (
                (lambda: source) if list(argument(node, "repeats")) == twice == twice[-value(source).dim() :] else None
            )
        return None

    def _repeated_in_turn(self, node: fx.Node, rank: int, width: int) -> Make | None:
        if is_call(node, aten.repeat_interleave.self_int) and argument(node, "dim") in (-1, rank - 1):
            source = operands(node)[0]
            return self._without_slice(source) if argument(node, "repeats") == 2 else None
        if is_call(node, *RESHAPES) and is_call(node.args[0], aten.stack.default):
            stack: Any = node.args[0]
            parts = argument(stack, "tensors")
            if len(parts) == 2 and parts[0] is parts[1] and argument(stack, "dim") in (-1, rank):
                same = value(parts[0]).dim() == rank and static_size(parts[0], -1) == width // 2
                return (lambda: parts[0]) if same else None
        return None

    def _without_slice(self, node: fx.Node) -> Make:
        """`node`, or f where it is the first half of what was computed from cat((f, f))."""
        if not is_call(node, aten.slice.Tensor):
            return lambda: node
        source, start, step = operands(node)[0], argument(node, "start"), argument(node, "step")
        is_half = 2 * value(node).shape[-1] == value(source).shape[-1] and start in (None, 0) and step == 1
        inner = RepeatedHalves(self._program, interleaved=False).of(source) if is_half else None
        return inner or (lambda: node)

    def _stored(self, node: fx.Node) -> Make | None:
        """Half of a weight whose halves are equal, as a weight of its own."""
        if not is_weight(node):
            return None
        weight = self._program.weight(node)
        first, second = self._halves(weight.detach())
        if not torch.equal(first, second):
            return None

        def make() -> fx.Node:
            name = self._program.free_name(f"{node.target}_half")
            self._program.set_weight(name, first.clone(), trainable=isinstance(weight, nn.Parameter))
            with node.graph.inserting_after(node):
                half = node.graph.get_attr(name)
            half.meta = {**node.meta, "val": self._halves(value(node))[0]}
            return half

        return make

    def _halves(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        if self._interleaved:
            return tensor[..., 0::2], tensor[..., 1::2]
        first, second = tensor.chunk(2, dim=-1)
        return first, second

    def _computed(self, node: fx.Node, width: int) -> Make | None:
        """The same operator on half of every operand that is as wide as the result."""
        if node.op != "call_function" or not self._keeps_last_dim(node):
            return None
        halves: dict[fx.Node, Make] = {}
        for operand in node.all_input_nodes:
            if not has_tensor(operand) or _is_index(node, operand):
                continue
            last = static_size(operand, -1) if value(operand).dim() else 1
            half = self.of(operand) if last == width else None
            if half is not None:
                halves[operand] = half
            elif last != 1:
                return None
        return (lambda: self._again(node, halves)) if halves else None

    def _again(self, node: fx.Node, halves: dict[fx.Node, Make]) -> fx.Node:
        made = {operand: make() for operand, make in halves.items()}
        args: Any = torch.fx.node.map_arg(node.args, lambda one: made.get(one, one))
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda one: made.get(one, one))
        if is_call(node, aten.expand.default):
            args = (args[0], [*args[1][:-1], -1])
        assert callable(node.target)
        return insert_call(node.next, node.target, *args, like=node, **kwargs)

    def _keeps_last_dim(self, node: fx.Node) -> bool:
        """Whether every number of the result comes from the numbers at the same place in the last dim."""
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) or is_call(node, *CASTS, *COPIES):
            return True
        rank = value(node).dim()
        if is_call(node, aten.unsqueeze.default):
            return bool(argument(node, "dim") % rank != rank - 1)
        if is_call(node, aten.squeeze.dim, aten.slice.Tensor):
            source_rank = value(operands(node)[0]).dim()
            return bool(argument(node, "dim") % source_rank != source_rank - 1)
        if is_call(node, aten.index.Tensor):
            source, indices = operands(node)[:2]
            return len(indices) < value(source).dim()
        if is_call(node, aten.index_select.default):
            return value(operands(node)[0]).dim() > 1 and argument(node, "dim") % rank != rank - 1
        return is_call(node, *ALONG_OTHER_DIMS)


def _is_index(node: fx.Node, operand: fx.Node) -> bool:
    """Whether `operand` says only which rows to take."""
    return is_call(node, *ALONG_OTHER_DIMS) and operand is not operands(node)[0]
