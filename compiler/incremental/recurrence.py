"""Recurrent operators read the state that earlier calls left: those of the dialect whose state keeps its size."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping

from torch import fx

from compiler.incremental.inputs import Counts, InputWriter
from compiler.patterns import all_arguments, argument, insert_call
from compiler.program import Program
from compiler.sites import Refusal
from compiler.states import BATCH, State

RECURRENT: Mapping[str, Mapping[str, int]] = {
    "regraft.linear_attention.default": {"past_state": 1},
    "regraft.causal_conv.default": {"past_state": 1},
    "regraft.token_delay.default": {"past": 1},
    "regraft.context_score.default": {"past_state": 1},
    "regraft.sliding_window_attention.default": {"past_key": 2, "past_value": 3},
}
"""By operator: the arguments that take a state, and which result is the next value of each."""
LENGTH = "past_length"
"""The argument of those that count: how many tokens each row has had, int64 [batch]."""


def recurrent_nodes(program: Program) -> list[fx.Node]:
    """The nodes with a state, in order."""
    return [node for node in program.graph.nodes if str(node.target) in RECURRENT]


def refused_recurrence(node: fx.Node) -> Refusal | None:
    """Why a recurrent node cannot take its state from outside; None where it can."""
    if any(argument(node, name) is not None for name in RECURRENT[str(node.target)]):
        return Refusal("its state does not start empty", node.name)
    return None


def carry_states(
    node: fx.Node, names: Iterator[tuple[str, str]], writer: InputWriter, counts: Counts
) -> list[tuple[State, fx.Node]]:
    """Give `node` its past states, called by `names`; each state, and the node of its next value."""
    carried, given = [], {}
    following = node.next
    for name, result in RECURRENT[str(node.target)].items():
        held = node.meta["val"][result]  # [batch, ...]
        state = State(*next(names))
        given[name] = writer.add(state.past, held.dtype, [BATCH, *(int(size) for size in held.shape[1:])])
        carried.append((state, insert_call(following, operator.getitem, node, result)))
    arguments = all_arguments(node)
    if LENGTH in arguments:
        given[LENGTH] = counts.past
    node.args = tuple((arguments | given).values())
    node.kwargs = {}
    return carried
