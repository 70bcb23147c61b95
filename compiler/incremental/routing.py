"""Routed attention over whole sequences reads its keys from buffers, like any attention; its router carries a state."""

from __future__ import annotations

import operator

from torch import fx

from compiler.incremental.inputs import Counts, InputWriter
from compiler.patterns import all_arguments, argument, insert_call, value
from compiler.program import Program
from compiler.sites import Refusal
from compiler.states import BATCH, CAPACITY, State

ROUTED = "regraft.routed_attention.default"


def routed_nodes(program: Program) -> list[fx.Node]:
    """The nodes with a choice of attention, in order."""
    return [node for node in program.graph.nodes if str(node.target) == ROUTED]


def refused_routing(node: fx.Node) -> Refusal | None:
    """Why a node cannot take its buffers from outside; None where it can."""
    if argument(node, "past_key") is not None:
        return Refusal("its buffers do not start empty", node.name)
    return None


def route_incrementally(
    node: fx.Node, index: int, writer: InputWriter, counts: Counts
) -> tuple[list[State], list[fx.Node]]:
    """Give `node` buffers of keys and values; its two states, and the nodes of their next values."""
    key = argument(node, "key")
    _, kv_heads, _, head_dim = value(key).shape
    shape: list[int | str] = [BATCH, int(kv_heads), CAPACITY, int(head_dim)]
    states = [State(f"past_key_values.{index}.{part}", f"present.{index}.{part}") for part in ("key", "value")]
    past_key, past_value = (writer.add(state.past, value(key).dtype, shape) for state in states)
    given = {
        "past_key": past_key,
        "past_value": past_value,
        "past_length": counts.past,
        "total_sequence_length": counts.total,
    }
    following = node.next
    node.args = tuple((all_arguments(node) | given).values())
    node.kwargs = {}
    return states, [insert_call(following, operator.getitem, node, result) for result in (1, 2)]
