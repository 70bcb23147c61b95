"""Who reads a stored weight: a tied weight has several readers, at times under several names."""

from __future__ import annotations

from torch import Tensor, fx

from compiler.program import Program


def weight_readers(program: Program, name: str) -> set[fx.Node]:
    """Every node that reads the tensor called `name`, under this or another name."""
    return {user for holder in _holders(program, name) for user in holder.users}


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
