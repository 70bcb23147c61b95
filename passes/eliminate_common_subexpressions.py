"""Compute what is computed twice only once.

Before:  a = linear(x, W);  b = linear(x, W);  add(a, b)
After:   a = linear(x, W);  add(a, a)
Shapes:  unchanged.
Exact:   bit for bit: the same operator on the same arguments.
Refuses: operators that draw random numbers, leave memory unset or write in place; values that something writes to in
         place; two results that are both returned, which the caller may change one by one.
Source:  the usual definition; Aho, Lam, Sethi and Ullman 2006, section 9.1.4.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from compiler.aliasing import mutates, written_values
from compiler.hookspecs import hookimpl
from compiler.patterns import aten, has_tensor, is_call, value
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite

UNSET_MEMORY = frozenset({aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default})
ON_SIZES = frozenset(
    {operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod}
)


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Rewrite):
    """Compute what is computed twice only once."""

    name: ClassVar[str] = "eliminate-common-subexpressions"
    family: ClassVar[str | None] = "simplify"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the nodes that went."""
        written = written_values(program.graph)
        returned = set(program.output_node().all_input_nodes)
        first: dict[Hashable, fx.Node] = {}
        dropped = []
        for node in list(program.graph.nodes):
            if not _is_pure(node) or node in written or not written.isdisjoint(node.all_input_nodes):
                continue
            kept = first.setdefault(_expression(node), node)
            if kept is node or not _same_value(kept, node) or {kept, node} <= returned:
                continue
            node.replace_all_uses_with(kept)
            if node in returned:
                returned.add(kept)
            program.graph.erase_node(node)
            dropped.append(node.name)
        if dropped:
            program.refresh()
        return PassResult(changed=tuple(dropped))


def _is_pure(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op != "call_function" or node.is_impure() or mutates(node) or is_call(node, *UNSET_MEMORY):
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded not in node.target.tags
    return node.target in ON_SIZES


def _expression(node: fx.Node) -> Hashable:
    """Equal for two nodes that compute the same thing. Types count: 1, 1.0 and True are different arguments."""
    return node.op, node.target, _frozen(node.args), _frozen(dict(sorted(node.kwargs.items())))


def _frozen(item: Any) -> Hashable:
    if isinstance(item, (tuple, list)):
        return type(item).__name__, *(_frozen(part) for part in item)
    if isinstance(item, dict):
        return tuple((key, _frozen(part)) for key, part in item.items())
    if isinstance(item, slice):
        return "slice", _frozen(item.start), _frozen(item.stop), _frozen(item.step)
    return (type(item).__name__, repr(item)) if isinstance(item, float) else (type(item).__name__, item)


def _same_value(kept: fx.Node, node: fx.Node) -> bool:
    """Whether shape and dtype agree, as they must; checked because metadata decides what later passes do."""
    if not has_tensor(kept) or not has_tensor(node):
        return has_tensor(kept) == has_tensor(node)
    ours, theirs = value(kept), value(node)
    return ours.dtype == theirs.dtype and ours.device == theirs.device and len(ours.shape) == len(theirs.shape)


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [EliminateCommonSubexpressions]
