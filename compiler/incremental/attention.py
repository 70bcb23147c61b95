"""An attention site over whole sequences becomes regraft::group_query_attention over buffers."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compiler.incremental.inputs import Counts, InputWriter
from compiler.ops.group_query_attention import NO_WINDOW
from compiler.patterns import (
    aten,
    drop_nodes,
    insert_call,
    is_call,
    only_user,
    operands,
    permutation,
    replace,
    same_size,
    upstream,
    value,
)
from compiler.program import Program
from compiler.sites import Refusal, Site
from compiler.states import BATCH, CAPACITY, State

ROTARY = "regraft.rotary_embedding.default"
HEADS_FIRST = (0, 2, 1, 3)


@dataclass(frozen=True)
class Rotation:
    """Query and key before they are turned, and the angles of every position."""

    query: fx.Node
    key: fx.Node
    cos: fx.Node
    sin: fx.Node
    interleaved: bool


def refused_attention(site: Site) -> Refusal | None:
    """Why a site cannot read its keys from a buffer; None where it can."""

    def refuse(reason: str) -> Refusal:
        return Refusal(reason, site.output.name, site.name, site.kind)

    query, key, value_ = site.inputs[:3]
    if not same_size(value(query).shape[2], value(key).shape[2]):
        return refuse("its keys are of another sequence")
    _, highest = site.bindings["window"]
    if "bias" in site.bindings["mask"]:
        return refuse("a bias that is computed for whole sequences is added to its scores")
    if highest is None or highest > 0:
        return refuse("tokens attend to later ones: the model is not causal there")
    if highest < 0:
        return refuse("its window leaves the token itself out")
    if value(key).shape[3] != value(value_).shape[3]:
        return refuse("its values are of another width than its keys")
    return None


def attend_incrementally(
    site: Site, index: int, writer: InputWriter, counts: Counts, rotation: Rotation | None, caches: RotaryCaches
) -> tuple[list[State], list[fx.Node]]:
    """Put the cached form in a site's place; its two states, and the nodes of their next values."""
    query, key, value_ = site.inputs[:3]
    head_dim, kv_heads = value(key).shape[3], int(site.bindings["kv_head_count"])
    shape: list[int | str] = [BATCH, kv_heads, CAPACITY, int(head_dim)]
    states = [State(f"past_key_values.{index}.{part}", f"present.{index}.{part}") for part in ("key", "value")]
    pasts = [writer.add(state.past, value(key).dtype, shape) for state in states]
    cos = sin = None
    if rotation is not None:
        query, key = rotation.query, rotation.key
        cos, sin = caches.node(rotation.cos, site.output), caches.node(rotation.sin, site.output)
    at = site.output
    lowest = site.bindings["window"][0]
    made = insert_call(
        at,
        torch.ops.regraft.group_query_attention.default,
        packed_heads(query, at),
        packed_heads(key, at),
        packed_heads(value_, at),
        *pasts,
        counts.seqlens_k,
        counts.total,
        cos,
        sin,
        None,
        None,
        int(site.bindings["head_count"]),
        kv_heads,
        float(site.bindings["scale"]),
        float(site.bindings["softcap"]),
        NO_WINDOW if lowest is None else 1 - lowest,
        rotation is not None and rotation.interleaved,
    )
    output, *presents = (insert_call(at, operator.getitem, made, position) for position in range(3))
    _replace_output(site.output, output, int(site.bindings["head_count"]))
    return states, presents


def rotation_of(site: Site) -> Rotation | None:
    """What turns query and key by the same angles, where nothing but the rotation stands before the attention."""
    query, key = site.inputs[:2]
    if str(query.target) != ROTARY or str(key.target) != ROTARY:
        return None
    if query.args[1:] != key.args[1:]:
        return None
    x, cos, sin, interleaved = operands(query)
    return Rotation(x, operands(key)[0], cos, sin, bool(interleaved))


class RotaryCaches:
    """Tables [context, rotary_dim / 2] of what a graph computes for each position, by the node that computes it."""

    def __init__(self, program: Program, context: int) -> None:
        self._program = program
        self._context = context
        self._names: dict[fx.Node, str | None] = {}
        self._copy = program.copy()
        self._twins = dict(zip(program.graph.nodes, self._copy.graph.nodes, strict=True))

    def known(self, angles: fx.Node) -> bool:
        """Whether `angles` [1, tokens, n] depends on positions alone, so that a table holds it."""
        if angles not in self._names:
            table = self._table(angles)
            name = None
            if table is not None:
                name = self._program.free_name(f"rotary_caches.{angles.name}")
                self._program.set_weight(name, table, trainable=False)
            self._names[angles] = name
        return self._names[angles] is not None

    def node(self, angles: fx.Node, before: fx.Node) -> fx.Node:
        """The table, read in front of `before`."""
        assert self.known(angles)
        name = str(self._names[angles])
        known = [node for node in before.graph.find_nodes(op="get_attr") if node.target == name]
        if known:
            return known[0]  # type: ignore[no-any-return]
        with before.graph.inserting_before(next(iter(before.graph.nodes))):
            node = before.graph.get_attr(name)
        with before.meta["val"].fake_mode as mode:
            node.meta["val"] = mode.from_tensor(self._program.weight(name), static_shapes=True)
        return node

    def _table(self, angles: fx.Node) -> Tensor | None:
        twin = self._twins[angles]
        needed = set(upstream(twin, lambda node: is_call(node, aten.sym_size.int)))
        sized = {node for node in needed if is_call(node, aten.sym_size.int)}
        if any(node.op == "placeholder" for node in needed) or value(angles).dim() != 3:
            return None
        interpreter = fx.Interpreter(self._copy.graph_module)
        tokens = self._copy.placeholders()[0]
        environment: dict[fx.Node, object] = {}
        for node in self._copy.graph.nodes:
            if node in sized:
                is_count = same_size(node.meta["val"], value(tokens).shape[1])
                environment[node] = self._context if is_count else 1
            elif node in needed:
                interpreter.env = environment
                with torch.no_grad():
                    environment[node] = interpreter.run_node(node)
        table = environment[twin]
        assert isinstance(table, Tensor)
        return table[0].contiguous() if len(table) == 1 else None


def packed_heads(node: fx.Node, at: fx.Node) -> fx.Node:
    """[batch, heads, tokens, head_dim] as [batch, tokens, heads * head_dim]; what it was split from, where it was."""
    heads, head_dim = value(node).shape[1], value(node).shape[3]
    width = int(heads) * int(head_dim)
    if permutation(node) == HEADS_FIRST:
        split = node.args[0]
        assert isinstance(split, fx.Node)
        source = split.args[0] if is_call(split, aten.reshape.default, aten.view.default) else None
        if isinstance(source, fx.Node) and value(source).dim() == 3 and value(source).shape[2] == width:
            return source
    else:
        split = insert_call(at, aten.transpose.int, node, 1, 2)
    return insert_call(at, aten.flatten.using_ints, split, 2)


def _replace_output(node: fx.Node, output: fx.Node, heads: int) -> None:
    """Let readers of [batch, heads, tokens, head_dim] read `output`, joined heads; those that join them, as it is."""
    user = only_user(node)
    if user is not None and permutation(user) == HEADS_FIRST:
        joined = only_user(user)
        joins = joined is not None and is_call(joined, aten.reshape.default) and value(joined).dim() == 3
        if joined is not None and joins and value(joined).shape[2] == value(output).shape[2]:
            replace(joined, output)
            if not node._erased:  # torch counts its own as having effects, since it may drop weights at random
                drop_nodes([node])
            return
    split = insert_call(node, aten.unflatten.int, output, 2, [heads, -1])
    replace(node, insert_call(node, aten.transpose.int, split, 1, 2))
