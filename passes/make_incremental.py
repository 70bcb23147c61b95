"""logits(whole sequences)  ->  logits(new tokens, states), states: one graph for prefill, its chunks and decoding

Before:  logits = f(input_ids, attention_mask): every call reads all tokens; attention over keys of the same call
After:   logits, present.* = f(input_ids, attention_mask, logit_positions, past_key_values.*): attention, routed or not,
         is over buffers, positions follow each row's past, recurrent operators, windows and routers take and give
         states of fixed size, and the head computes logits for the positions that are asked for (the last one while a
         prompt is read)
Shapes:  input_ids [batch, sequence]; attention_mask [batch, total_sequence], ones and then zeros;
         logit_positions [kept]; logits [batch, kept, vocabulary]; past_key_values.{i}.key and
         .value [batch, kv_heads, capacity, head_dim].
Exact:   up to rounding: rows without padding in front give the captured model's logits for every token that is no
         padding, in whatever pieces a sequence is read; the pass itself reads one in pieces and compares every node.
Refuses: attention to later tokens, or with a bias that is computed for whole sequences (ALiBi); inputs other than
         tokens, their mask and positions; positions that are read in other forms than rows; whatever else mixes tokens.
Source:  Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3 (causality); Pope et al. 2022, arXiv:2211.05102, section 2
         (prefill and decode); com.microsoft GroupQueryAttention.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import fx

from compiler.hookspecs import hookimpl
from compiler.incremental.attention import RotaryCaches, attend_incrementally, refused_attention, rotation_of
from compiler.incremental.inputs import replace_mask
from compiler.incremental.positions import follow_past
from compiler.incremental.proof import pieces_agree
from compiler.incremental.recurrence import carry_states, recurrent_nodes, refused_recurrence
from compiler.incremental.routing import refused_routing, route_incrementally, routed_nodes
from compiler.patterns import aten, insert_call, is_call, operands, scalar, value
from compiler.program import Dimension, Program, TensorSpec
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal, Site, find_sites
from compiler.states import KEPT, KEPT_POSITIONS, MASK, TOKENS, State

UNKNOWN_CONTEXT = 2048
"""Positions that tables are made for where the model does not say how many tokens it reads."""
POINTWISE = frozenset(
    {aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.tanh.default, aten.to.dtype, aten.contiguous.default}
)
HEADS = ("aten.linear.default", "regraft.quantized_linear.default")
"""Products of each token alone: in blocks, inputs are rounded in blocks of one token at most."""


@dataclass(frozen=True)
class MakeIncremental(Rewrite):
    """Rewrites a causal Program to read new tokens and keep states."""

    name: ClassVar[str] = "make-incremental"
    requires: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse")
    whole_model: ClassVar[bool] = True

    context: Annotated[int | None, "tokens that positions are stored for; as the model says if left out"] = None

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place, all of it or nothing. `changed` names the attention sites and recurrent nodes."""
        if program.states:
            return PassResult()
        plan = _plan(program)
        if isinstance(plan, Refusal):
            return PassResult(refusals=(plan,))
        work = program.copy()
        refusal = _rewrite(work, self.context or program.context_length or UNKNOWN_CONTEXT)
        if refusal is None:
            refusal = pieces_agree(work, program.example_inputs[plan.tokens])
        if refusal is not None:
            return PassResult(refusals=(refusal,))
        program.graph_module, program.states = work.graph_module, work.states
        program.inputs, program.outputs, program.example_inputs = work.inputs, work.outputs, work.example_inputs
        program.context_length = self.context or program.context_length
        return PassResult(changed=plan.names)


@dataclass(frozen=True)
class _Plan:
    """Places of the inputs that have a part in decoding, and the names of what will carry a state."""

    tokens: int
    mask: int | None
    names: tuple[str, ...]


def _plan(program: Program) -> _Plan | Refusal:
    """What the rewrite would do, or the first reason why not. Leaves the Program alone."""
    names = [spec.name for spec in program.inputs]
    strangers = [name for name in names if name not in (TOKENS, MASK)]
    if TOKENS not in names or strangers:
        what = f"input {strangers[0]} has no part in decoding" if strangers else f"no input is called {TOKENS}"
        return Refusal(what, strangers[0] if strangers else names[0])
    if len(program.outputs) != 1 or len(program.outputs[0].shape) != 3:
        return Refusal("it does not give one set of logits [batch, tokens, vocabulary]", program.outputs[0].name)
    if not isinstance(program.inputs[names.index(TOKENS)].shape[1], Dimension):
        return Refusal("its token count is fixed", TOKENS)
    found = find_sites(program, ("attention",))
    for site in found:
        refusal = site if isinstance(site, Refusal) else refused_attention(site)
        if refusal is not None:
            return refusal
    recurrent, routed = recurrent_nodes(program), routed_nodes(program)
    for node in (*recurrent, *routed):
        if (refusal := refused_routing(node) if node in routed else refused_recurrence(node)) is not None:
            return refusal
    if not found and not recurrent:
        return Refusal("nothing in it carries a state from token to token", program.outputs[0].name)
    carried = (*(site.name for site in found), *(node.name for node in (*routed, *recurrent)))
    return _Plan(names.index(TOKENS), names.index(MASK) if MASK in names else None, carried)


def _rewrite(program: Program, context: int) -> Refusal | None:
    """Edit `program`; what stands in the way is only found on the way where positions are read."""
    placeholders = dict(zip((spec.name for spec in program.inputs), program.placeholders(), strict=True))
    caches = RotaryCaches(program, context)
    sites = [site for site in find_sites(program, ("attention",)) if isinstance(site, Site)]
    recurrent = recurrent_nodes(program)
    writer, counts, ones = replace_mask(program, placeholders[TOKENS], placeholders.get(MASK))
    kept = writer.add(KEPT_POSITIONS, torch.int64, [KEPT])
    states: list[State] = []
    presents: list[fx.Node] = []
    for index, site in enumerate(sites):
        rotation = rotation_of(site)
        if rotation is not None and not (caches.known(rotation.cos) and caches.known(rotation.sin)):
            rotation = None
        added, nodes = attend_incrementally(site, index, writer, counts, rotation, caches)
        states += added
        presents += nodes
    for index, node in enumerate(routed_nodes(program), len(sites)):
        added, nodes = route_incrementally(node, index, writer, counts)
        states += added
        presents += nodes
    names = ((f"past_state.{index}", f"present_state.{index}") for index in itertools.count())
    for node in recurrent:
        for state, present in carry_states(node, names, writer, counts):
            states.append(state)
            presents.append(present)
    _keep_positions(program, kept)
    _return(program, states, presents)
    refusal = follow_past(program, counts, ones)
    if refusal is None:
        program.refresh()
    return refusal


def _keep_positions(program: Program, kept: fx.Node) -> None:
    """Take the kept positions before the head: as early as what follows works on each token alone."""
    (logits,) = operands(program.output_node())[0]
    place = logits
    while is_call(place, *POINTWISE):
        sources = [one for one in place.all_input_nodes if value(one).dim() == 3]
        if len(sources) != 1 or any(scalar(one) is None for one in place.all_input_nodes if one not in sources):
            break
        place = sources[0]
    if str(place.target) in HEADS:
        place = operands(place)[0]
    following = place.next
    count = insert_call(following, aten.sym_size.int, place, 1)
    positions = insert_call(following, aten.remainder.Scalar, kept, count)
    chosen = insert_call(following, aten.index_select.default, place, 1, positions, like=place)
    place.replace_all_uses_with(chosen, delete_user_cb=lambda user: user not in (count, chosen))


def _return(program: Program, states: list[State], presents: list[fx.Node]) -> None:
    """Give the next states after the logits."""
    output = program.output_node()
    output.args = ((*operands(output)[0], *presents),)
    program.states = tuple(states)
    shapes = {spec.name: spec for spec in program.inputs}
    (logits,) = program.outputs
    kept = shapes[KEPT_POSITIONS].shape[0]
    program.outputs = (
        TensorSpec("logits", logits.dtype, (logits.shape[0], kept, *logits.shape[2:])),
        *(TensorSpec(state.present, shapes[state.past].dtype, shapes[state.past].shape) for state in states),
    )


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [MakeIncremental]
