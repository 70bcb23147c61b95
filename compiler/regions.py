"""Regions: the graphs that `cond` and `while_loop` nodes run, which are submodules of the graph they stand in.

Before (as tracing leaves it):  cond(pred, @true, @false, (x, unused))     @true reads a tensor constant of its own
After `close_regions`:          cond(pred, @true, @false, (x, constant))   all tensors that a region reads are operands
So weights are found in the outermost graph alone, and a region can be copied and written without looking around.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

COND = torch.ops.higher_order.cond
WHILE_LOOP = torch.ops.higher_order.while_loop
DROPPED = frozenset({torch.ops.aten._assert_tensor_metadata.default})
PASSED_ON = frozenset({torch.ops.aten.detach_.default, torch.ops.aten.lift_fresh_copy.default})


def runs_regions(node: fx.Node) -> bool:
    """Whether `node` is a `cond` or `while_loop`."""
    return node.op == "call_function" and node.target in (COND, WHILE_LOOP)


def region_nodes(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two `get_attr` nodes: the branches of a cond, then first; test and body of a while_loop."""
    first, second = node.args[1:3] if node.target is COND else node.args[:2]
    return first, second  # type: ignore[return-value]


def regions_of(owner: nn.Module, node: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graphs behind `region_nodes`."""
    first, second = (owner.get_submodule(str(body.target)) for body in region_nodes(node))
    return first, second  # type: ignore[return-value]


def region_operands(node: fx.Node) -> tuple[Any, ...]:
    """What the placeholders of each region are given, in order."""
    if node.target is COND:
        return tuple(node.args[3])  # type: ignore[arg-type]
    return (*node.args[2], *node.args[3])  # type: ignore[misc]


def nested_graphs(module: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """The module itself, then its regions and theirs."""
    yield module
    for node in module.graph.nodes:
        if runs_regions(node):
            for region in regions_of(module, node):
                yield from nested_graphs(region)


def copy_regions(module: fx.GraphModule) -> None:
    """Give `module` regions of its own in place of those that it shares with the module it was copied from."""
    for node in module.graph.nodes:
        if not runs_regions(node):
            continue
        for body, region in zip(region_nodes(node), regions_of(module, node), strict=True):
            graph = fx.Graph()
            returned = graph.graph_copy(region.graph, {})
            graph.output(returned)
            copied = fx.GraphModule(region, graph, class_name="Region")
            copy_regions(copied)
            path, _, leaf = str(body.target).rpartition(".")
            setattr(module.get_submodule(path), leaf, copied)


def close_regions(owner: fx.GraphModule) -> None:
    """Make every tensor that a region keeps an operand, and drop operands that no region reads."""
    for node in list(owner.graph.nodes):
        if not runs_regions(node):
            continue
        regions = regions_of(owner, node)
        for region in regions:
            close_regions(region)
            _drop_traces_of_tracing(region.graph)
        for region in regions:
            for held in region.graph.find_nodes(op="get_attr"):
                _hand_in(owner, node, regions, held)
        _drop_unread_operands(node, regions)
        for region in regions:
            region.graph.lint()
            drop_unused_modules(region)
            region.recompile()
    owner.recompile()


def drop_unused_modules(module: nn.Module) -> None:
    """Delete the submodules that no node of the module's graph, or of its regions, reads from."""
    graph = module.graph
    assert isinstance(graph, fx.Graph)
    targets = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    above = {".".join(parts[:end]) for parts in (one.split(".") for one in targets) for end in range(1, len(parts))}
    for name, _ in reversed(list(module.named_modules())):
        parts = name.split(".")
        inside = any(".".join(parts[:end]) in targets for end in range(1, len(parts) + 1))
        if name and name not in above and not inside:
            _delete(module, name)


def _delete(module: nn.Module, name: str) -> None:
    path, _, leaf = name.rpartition(".")
    delattr(module.get_submodule(path), leaf)


def _drop_traces_of_tracing(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target in DROPPED:
            graph.erase_node(node)
        elif node.target in PASSED_ON:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _hand_in(
    owner: fx.GraphModule, node: fx.Node, regions: tuple[fx.GraphModule, fx.GraphModule], held: fx.Node
) -> None:
    """Move the tensor behind `held`, a `get_attr` of a region, to `owner`, and pass it as the last operand."""
    region = held.graph.owning_module
    value: Any = region
    for part in str(held.target).split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        return
    name, count = "region_constant", 0
    while hasattr(owner, name):
        count += 1
        name = f"region_constant_{count}"
    owner.register_buffer(name, value.detach())
    with owner.graph.inserting_before(node):
        operand = owner.graph.get_attr(name)
    operand.meta["val"] = held.meta.get("val", value)
    *rest, last = node.args
    assert isinstance(last, (tuple, list))
    node.args = (*rest, (*last, operand))
    for one in regions:
        placeholders = one.graph.find_nodes(op="placeholder")
        with one.graph.inserting_after(placeholders[-1]) if placeholders else _at_start(one.graph):
            placeholder = one.graph.placeholder(name)
        placeholder.meta["val"] = operand.meta["val"]
        if one is region:
            held.replace_all_uses_with(placeholder)
            one.graph.erase_node(held)


def _at_start(graph: fx.Graph) -> Any:
    return graph.inserting_before(next(iter(graph.nodes)))


def _drop_unread_operands(node: fx.Node, regions: tuple[fx.GraphModule, fx.GraphModule]) -> None:
    """Values that a loop carries stay: each is also a result."""
    first, second = (region.graph.find_nodes(op="placeholder") for region in regions)
    *rest, operands = node.args
    assert isinstance(operands, (tuple, list))
    kept, carried = [], len(first) - len(operands)
    for operand, one, other in zip(operands, first[carried:], second[carried:], strict=True):
        if one.users or other.users:
            kept.append(operand)
        else:
            for placeholder in (one, other):
                placeholder.graph.erase_node(placeholder)
    node.args = (*rest, tuple(kept))
