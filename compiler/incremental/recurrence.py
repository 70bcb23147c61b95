"""Recurrent operators read the state that earlier calls left: the dialect's linear attention and causal convolution."""

from __future__ import annotations

import operator

from torch import fx

from compiler.incremental.inputs import InputWriter
from compiler.patterns import all_arguments, argument, insert_call
from compiler.program import Program
from compiler.sites import Refusal
from compiler.states import BATCH, State

RECURRENT = ("regraft.linear_attention.default", "regraft.causal_conv.default")
"""Operators with a `past_state` argument that give an output and the next state."""


def recurrent_nodes(program: Program) -> list[fx.Node]:
    """The nodes with a state, in order."""
    return [node for node in program.graph.nodes if str(node.target) in RECURRENT]


def refused_recurrence(node: fx.Node) -> Refusal | None:
    """Why a recurrent node cannot take its state from outside; None where it can."""
    if argument(node, "past_state") is not None:
        return Refusal("its state does not start empty", node.name)
    return None


def carry_state(node: fx.Node, index: int, writer: InputWriter) -> tuple[State, fx.Node]:
    """Give `node` a past state; the state, and the node of its next value."""
    held = node.meta["val"][1]  # [batch, ...]
    state = State(f"past_state.{index}", f"present_state.{index}")
    past = writer.add(state.past, held.dtype, [BATCH, *(int(size) for size in held.shape[1:])])
    node.args = tuple((all_arguments(node) | {"past_state": past}).values())
    node.kwargs = {}
    following = node.next
    return state, insert_call(following, operator.getitem, node, 1)
