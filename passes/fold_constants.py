"""Compute once, now, what depends on no input.

Before:  linear(x, transpose(W, 0, 1) * 2)
After:   linear(x, W_folded)                                  W is gone where nothing else reads it
Shapes:  unchanged.
Exact:   the values bit for bit; they are stored contiguous, so a product with them may add up in another order: 1e-6 in
         float32.
Refuses: results that would make the file grow by more than `growth_kib`; operators that draw random numbers or write in
         place; values that something writes to in place. A tensor filled with one number stays as it is written, and
         a quantized weight stays quantized.
Source:  the usual definition; Aho, Lam, Sethi and Ullman 2006, section 9.4.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, fx

from compiler.aliasing import mutates, written_values
from compiler.hookspecs import hookimpl
from compiler.patterns import constant_fill, erase_dead, has_tensor, is_call, value
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal

UNPACKED = ("regraft.dequantize_linear.default", "regraft.repack_codes.default")


@dataclass(frozen=True)
class FoldConstants(Rewrite):
    """Compute once, now, what depends on no input."""

    name: ClassVar[str] = "fold-constants"
    family: ClassVar[str | None] = "simplify"

    growth_kib: Annotated[int, "KiB by which one folded value may make the weights grow"] = 64

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the nodes whose values are weights now."""
        folded: list[str] = []
        refusals: list[Refusal] = []
        constant = _constant_nodes(program.graph)
        for node in [node for node in program.graph.nodes if node in constant]:
            if node._erased or not _is_worth_folding(node, constant):
                continue
            growth = _bytes_of(value(node)) - _freed_bytes(program, node, constant)
            if growth > self.growth_kib * 1024:
                refusals.append(Refusal(f"folding it adds {growth:,} bytes", node.name, node.name, "constant"))
                continue
            _fold(program, node, constant)
            folded.append(node.name)
        if folded:
            program.refresh()
        return PassResult(changed=tuple(folded), refusals=tuple(refusals))


def _constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Calls that depend on weights and numbers alone, and may be evaluated at any time."""
    written = written_values(graph)
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or node in written or not _is_pure(node):
            continue
        sources = node.all_input_nodes
        if all(source in constant or (source.op == "get_attr" and has_tensor(source)) for source in sources):
            constant.add(node)
    return constant


def _is_pure(node: fx.Node) -> bool:
    if is_call(node, operator.getitem):
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or mutates(node) or node.is_impure():
        return False
    if str(node.target) in UNPACKED:
        return False
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def _is_worth_folding(node: fx.Node, constant: set[fx.Node]) -> bool:
    """The last constant of its subgraph, a tensor of fixed size, and no plain fill, which is smaller as an operator."""
    if not has_tensor(node) or any(isinstance(size, torch.SymInt) for size in value(node).shape):
        return False
    return constant_fill(node) is None and any(user not in constant for user in node.users)


def _freed_bytes(program: Program, node: fx.Node, constant: set[fx.Node]) -> int:
    """Bytes of the weights that nothing but this node needs."""
    needed = _subgraph(node, constant)
    weights = {source for part in needed for source in part.all_input_nodes if source.op == "get_attr"}
    private = [part for part in needed if part is node or all(user in needed for user in part.users)]
    freed = [weight for weight in weights if all(user in private for user in weight.users)]
    return sum(_bytes_of(program.weight(weight)) for weight in freed)


def _subgraph(node: fx.Node, constant: set[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if part not in found:
            found.add(part)
            waiting.extend(source for source in part.all_input_nodes if source in constant)
    return found


def _fold(program: Program, node: fx.Node, constant: set[fx.Node]) -> None:
    needed = _subgraph(node, constant)
    weights = [source for part in needed for source in part.all_input_nodes if source.op == "get_attr"]
    name = f"{min(str(weight.target) for weight in weights)}_folded" if weights else f"constant_{node.name}"
    name = program.free_name(name)
    trainable = any(program.weight(weight).requires_grad for weight in weights)
    program.set_weight(name, _evaluated(program, node, {}), trainable=trainable)
    with program.graph.inserting_before(node):
        folded = program.graph.get_attr(name)
    folded.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(folded)
    erase_dead(node)


def _evaluated(program: Program, node: fx.Node, known: dict[fx.Node, Any]) -> Tensor:
    """The value of a constant node, in memory of its own."""
    with torch.no_grad():
        result = _value_of(program, node, known)
    assert isinstance(result, Tensor)
    return result.detach().clone(memory_format=torch.contiguous_format)


def _value_of(program: Program, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return program.weight(node)
    if node not in known:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: _value_of(program, source, known))
        assert callable(node.target)
        known[node] = node.target(*args, **kwargs)
    return known[node]


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [FoldConstants]
