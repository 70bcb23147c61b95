"""Makes positions follow the past: counts from 0 to tokens become counts from each row's own past length."""

from __future__ import annotations

from torch import fx

from compiler.incremental.inputs import Counts
from compiler.patterns import CASTS, COPIES, argument, aten, insert_call, is_call, same_size, through, upstream, value
from compiler.program import Program
from compiler.sites import Refusal
from compiler.sites.index_arithmetic import counted_dim

COUNTS = frozenset({aten.arange.default, aten.arange.start, aten.arange.start_step})


def follow_past(program: Program, counts: Counts, ones: fx.Node) -> Refusal | None:
    """Rewrite every count of the new tokens that something still reads; why not, where one is read in another form.

    `ones` stands for the mask of the captured model: its running sum is the positions plus 1.
    """
    own = set(upstream(counts.positions, lambda node: False))
    read = set(upstream(program.output_node(), lambda node: False))
    for node in list(program.graph.nodes):
        if node in own or node not in read:
            continue
        if is_call(node, aten.cumsum.default) and through(node.args[0], CASTS | COPIES) is ones:
            node.replace_all_uses_with(insert_call(node, aten.add.Tensor, counts.positions, 1))
        elif _counts_tokens(node, counts) and (refusal := _place(node, counts)) is not None:
            return refusal
    program.graph.eliminate_dead_code()
    return None


def _counts_tokens(node: fx.Node, counts: Counts) -> bool:
    return is_call(node, *COUNTS) and same_size(value(node).shape[0], value(counts.tokens).shape[1])


def _place(count: fx.Node, counts: Counts) -> Refusal | None:
    """Let readers of a count [tokens] read positions [batch, tokens]: as a row, or to look rows up with."""
    for user in list(count.users):
        is_row = is_call(user, aten.unsqueeze.default) and counted_dim(user) == -1 and value(user).dim() == 2
        if is_row:
            user.replace_all_uses_with(counts.positions)
        elif is_call(user, aten.embedding.default) and argument(user, "indices") is count:
            user.replace_input_with(count, counts.positions)
        else:
            reason = f"{user.name} reads the positions of tokens in a form that cannot follow the past"
            return Refusal(reason, user.name)
    return None
