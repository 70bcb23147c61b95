"""Who reads a stored weight, and whether it may change: a tied weight has several readers, often several names."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from compiler.program import Program
from compiler.sites import Site


def weight_readers(program: Program, name: str) -> set[fx.Node]:
    """Every node that reads the tensor called `name`, under this or another name."""
    return {user for holder in _holders(program, name) for user in holder.users}


def other_readers(program: Program, site: Site) -> list[str]:
    """Names of the nodes outside of `site` that read its weight, in the graph's order."""
    readers = weight_readers(program, site.bindings["weight"]) - {site.output, *site.nodes}
    return [node.name for node in program.graph.nodes if node in readers]


def unusable_weight(program: Program, site: Site, *, shared: bool = False) -> str | None:
    """Why the weight of `site` cannot be stored in another form; with `shared` others may read it too."""
    name = site.bindings["weight"]
    weight = program.weight(name)
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype} already"
    others = [] if shared else other_readers(program, site)
    if others:
        return f"its weight {name} is shared with {', '.join(others)}"
    if not bool(torch.isfinite(weight).all()):
        return f"its weight {name} holds values that are not finite"
    return None


def rename_weight(program: Program, name: str, new_name: str, tensor: Tensor) -> None:
    """Let all who read the tensor called `name` read `tensor`, which is called `new_name`."""
    holders = _holders(program, name)
    program.set_weight(new_name, tensor)
    for holder in holders:
        holder.target = new_name


def _holders(program: Program, name: str) -> list[fx.Node]:
    tensor = program.weight(name)
    stored = program.graph.find_nodes(op="get_attr")
    return [node for node in stored if isinstance(node.meta.get("val"), Tensor) and program.weight(node) is tensor]
