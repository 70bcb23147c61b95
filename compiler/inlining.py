"""Puts the bodies of `torch.no_grad` and disabled `autocast` regions in place of the calls that export makes of them.

A Program is evaluated without gradients, and its casts are written out, so neither region changes a number.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from compiler.program import attribute

SET_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
AUTOCAST = torch._higher_order_ops.wrap.wrap_with_autocast


def inline_regions(graph_module: fx.GraphModule) -> list[str]:
    """Inline every region whose body can stand as it is, inner ones too; the names of the calls that went."""
    inlined: list[str] = []
    while (call := next((node for node in graph_module.graph.nodes if _body(node) is not None), None)) is not None:
        _inline(graph_module, call)
        inlined.append(call.name)
    return inlined


def _body(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
    """The node of the region's submodule and its arguments, when `node` calls a region that can be inlined."""
    if node.op != "call_function":
        return None
    if node.target is SET_GRAD:
        _, body, *arguments = node.args
    elif node.target is AUTOCAST and not node.args[2]:
        _, _, _, _, body, *arguments = node.args
    else:
        return None
    assert isinstance(body, fx.Node)
    return body, tuple(arguments)


def _inline(graph_module: fx.GraphModule, call: fx.Node) -> None:
    found = _body(call)
    assert found is not None
    body, arguments = found
    inner = attribute(graph_module, str(body.target)).graph
    values: dict[fx.Node, Any] = dict(zip((n for n in inner.nodes if n.op == "placeholder"), arguments, strict=True))
    with graph_module.graph.inserting_before(call):
        for node in inner.nodes:
            if node.op == "output":
                _connect(call, torch.fx.node.map_arg(node.args[0], lambda source: values[source]))
            elif node.op != "placeholder":
                copied = graph_module.graph.node_copy(node, lambda source: values[source])
                if node.op == "get_attr":
                    copied.target = f"{body.target}.{node.target}"
                if "nn_module_stack" in call.meta:
                    copied.meta["nn_module_stack"] = call.meta["nn_module_stack"]
                values[node] = copied
    graph_module.graph.erase_node(call)
    if not body.users:
        graph_module.graph.erase_node(body)


def _connect(call: fx.Node, results: Any) -> None:
    """Let those who read an item of `call` read the inlined value."""
    for user in list(call.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            user.graph.erase_node(user)
        else:
            user.replace_input_with(call, results)
