"""A Program as text: stable across runs and machines, one line a node, with shapes in named dims."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from compiler.regions import region_nodes, regions_of, runs_regions

if TYPE_CHECKING:
    from compiler.program import Program


def program_text(program: Program) -> str:
    """Inputs, one line a node, outputs, regions. Nodes are numbered as they appear, whatever tracing named them."""
    return "\n".join(_lines(program.graph_module, symbol_names(program))) + "\n"


def _lines(module: fx.GraphModule, symbols: dict[str, str]) -> list[str]:
    names: dict[fx.Node, str] = {}
    lines = []
    count = 0
    for node in module.graph.nodes:
        if node.op == "placeholder":
            names[node] = f"%{node.name}"
            lines.append(f"input {names[node]} : {value_text(node, symbols)}")
        elif node.op == "get_attr":
            names[node] = f"@{node.target}"
        elif node.op == "output":
            lines.append(f"return {_argument(node.args[0], names)}")
        else:
            names[node] = f"%{count}"
            count += 1
            arguments = [_argument(a, names) for a in node.args]
            arguments += [f"{key}={_argument(a, names)}" for key, a in node.kwargs.items()]
            lines.append(f"{names[node]} = {operator_name(node)}({', '.join(arguments)}) : {value_text(node, symbols)}")
    for node in module.graph.nodes:
        if runs_regions(node):
            for body, region in zip(region_nodes(node), regions_of(module, node), strict=True):
                lines += [f"region @{body.target}", *(f"  {line}" for line in _lines(region, symbols))]
    return lines


def operator_name(node: fx.Node) -> str:
    """`aten.linear` for a call of torch.ops.aten.linear.default; the overload is kept where it is not the default."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).removesuffix(".default")
    if callable(node.target):
        return getattr(node.target, "__name__", str(node.target))
    return f"{node.op} {node.target}"


def symbol_names(program: Program) -> dict[str, str]:
    """From the tracer's symbols to the names of the dims they stand for."""
    from compiler.program import Dimension

    symbols: dict[str, str] = {}
    for spec, node in zip(program.inputs, program.placeholders(), strict=True):
        value = node.meta.get("val")
        if value is None:
            continue
        for dim, size in zip(spec.shape, value.shape, strict=True):
            if isinstance(dim, Dimension):
                symbols.setdefault(str(size), dim.name)
    return symbols


def value_text(node: fx.Node, symbols: dict[str, str]) -> str:
    """A node's dtype and shape, as in `float32[batch, 384]`."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(_named(str(size), symbols) for size in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"
    if isinstance(value, (tuple, list)):
        return f"tuple of {len(value)}"
    return _named(str(value), symbols) if value is not None else "?"


def _named(expression: str, symbols: dict[str, str]) -> str:
    return re.sub(r"[su]\d+", lambda match: symbols.get(match[0], match[0]), expression)


def _argument(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names.get(value, f"%{value.name}")
    if isinstance(value, (tuple, list)):
        inner = ", ".join(_argument(item, names) for item in value)
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return repr(value)
