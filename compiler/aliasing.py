"""Which nodes share storage, and which of those an operator writes to: exact rules leave such nodes as they are.

Exported graphs are nearly free of mutation. What there is, is made functional where that is plainly the same, and
otherwise marked, so that exact rewrites stay exact on any graph.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from compiler.patterns import DROPOUTS, aten, insert_call, is_call

STRIDE_SENSITIVE = frozenset(
    {
        aten.as_strided.default,
        aten._reshape_alias.default,
        aten.view.dtype,
        aten.sym_stride.int,
        aten.sym_storage_offset.default,
    }
)


def mutates(node: fx.Node) -> bool:
    """Whether `node` calls an operator that writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def shares_storage_with(node: fx.Node) -> list[fx.Node]:
    """The inputs whose storage the result of `node` may share, by its schema where it has one."""
    if node.op == "call_function" and node.target is operator.getitem:
        return node.all_input_nodes
    if is_call(node, *DROPOUTS):
        return node.all_input_nodes[:1]
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema
        if all(returned.alias_info is None for returned in schema.returns):
            return []
        aliased = [arg.name for arg in schema.arguments if arg.alias_info is not None]
        given = {arg.name: item for arg, item in zip(schema.arguments, node.args, strict=False)} | node.kwargs
        return [item for name in aliased if isinstance(item := given.get(name), fx.Node)]
    if node.op == "call_function" and not isinstance(node.target, torch._ops.HigherOrderOperator):
        return []
    return [] if node.op in ("placeholder", "get_attr") else node.all_input_nodes


def storage_groups(graph: fx.Graph) -> dict[fx.Node, int]:
    """A number for every node; nodes of one number may share storage."""
    group: dict[fx.Node, int] = {}
    for index, node in enumerate(graph.nodes):
        sources = [] if node.op == "output" else shares_storage_with(node)
        group[node] = index
        for joined in {group[source] for source in sources}:
            for member, number in group.items():
                if number == joined:
                    group[member] = index
    return group


def written_values(graph: fx.Graph) -> set[fx.Node]:
    """Every node whose storage some operator writes to, or whose strides some operator reads."""
    writers = [node for node in graph.nodes if mutates(node) or is_call(node, *STRIDE_SENSITIVE)]
    if not writers:
        return set()
    groups = storage_groups(graph)
    touched = {groups[source] for node in writers for source in node.all_input_nodes}
    return {node for node, number in groups.items() if number in touched}


def make_functional(graph: fx.Graph) -> list[str]:
    """Replace in-place operators by their functional forms where nothing else can see the write; their names.

    Before:  y = aten.div_(x, s)      x is fresh, is read by nothing later, and no view of it was taken
    After:   y = aten.div(x, s)
    """
    replaced = []
    for node in list(graph.nodes):
        functional = _functional_form(node)
        if functional is None or not _write_is_unseen(node):
            continue
        result = insert_call(node, functional, *node.args, **node.kwargs)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        replaced.append(node.name)
    return replaced


def _functional_form(node: fx.Node) -> torch._ops.OpOverload | None:
    """`aten.add.Tensor` for a call of `aten.add_.Tensor`."""
    if not mutates(node):
        return None
    assert isinstance(node.target, torch._ops.OpOverload)
    namespace, name = node.target._schema.name.split("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    overload = getattr(packet, node.target._overloadname, None)
    return overload if isinstance(overload, torch._ops.OpOverload) and not overload._schema.is_mutable else None


def _write_is_unseen(node: fx.Node) -> bool:
    """Whether only `node`'s own result can tell that it wrote to its first argument."""
    target = node.args[0]
    if not isinstance(target, fx.Node) or target.op != "call_function":
        return False
    if any(source.op != "call_function" or not _is_item(target) for source in shares_storage_with(target)):
        return False
    others = [user for user in target.users if user is not node]
    return all(user < node and target not in shares_storage_with(user) for user in others)


def _is_item(node: fx.Node) -> bool:
    """Whether `node` is one of several fresh results of an operator, which then share no storage."""
    if node.target is not operator.getitem:
        return False
    producer = node.args[0]
    return isinstance(producer, fx.Node) and not shares_storage_with(producer)
