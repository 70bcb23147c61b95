"""Attention that takes and gives [batch, tokens, heads * head_dim], so that no head is transposed in memory.

Before:  q = Transpose(Reshape(x, [0, 0, heads, head_dim]), [0, 2, 1, 3]), k and v alike;
         Reshape(Transpose(Attention(q, k, v)))
After:   Attention(x, ..., q_num_heads=heads, kv_num_heads=kv_heads), whose kernel strides over the heads
Exact:   the same numbers.
Leaves:  attention whose heads are used elsewhere, or computed on once split (rotary embeddings, q and k norms).
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

HEADS_FIRST = [0, 2, 1, 3]


class Heads(NamedTuple):
    """The value before its heads were split, [batch, tokens, head_count * head_dim], and how many there are."""

    packed: ir.Value
    head_count: int


def absorb_head_transposes(graph: ir.Graph) -> int:
    """Rewrite every such attention; how many."""
    return sum(_absorb(node, graph) for node in list(graph) if node.op_type == "Attention" and node.domain == "")


def _absorb(node: ir.Node, graph: ir.Graph) -> bool:
    split = [_split_heads(value) for value in node.inputs[:3]]
    joined = _joined_heads(node.outputs[0])
    query, key, value = split
    if query is None or key is None or value is None or joined is None or key.head_count != value.head_count:
        return False
    attributes = {**node.attributes, **_counts(query.head_count, key.head_count)}
    output = ir.Value(name=joined.name, shape=joined.shape, type=joined.type)
    joined.name = f"{joined.name}.heads_joined"
    packed = ir.Node(
        "",
        "Attention",
        [query.packed, key.packed, value.packed, *node.inputs[3:]],
        list(attributes.values()),
        outputs=[output],
        name=node.name,
    )
    graph.insert_before(node, packed)
    joined.replace_all_uses_with(output, replace_graph_outputs=True)
    return True


def _counts(query: int, key: int) -> dict[str, ir.Attr]:
    return {name: ir.AttrInt64(name, count) for name, count in (("q_num_heads", query), ("kv_num_heads", key))}


def _split_heads(value: ir.Value | None) -> Heads | None:
    transpose = value.producer() if value is not None else None
    if not _is_transpose(transpose):
        return None
    assert transpose is not None
    reshape = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    if reshape is None or reshape.op_type != "Reshape" or reshape.inputs[0] is None:
        return None
    packed, shape = reshape.inputs[0], transpose.inputs[0].shape
    if packed.shape is None or len(packed.shape) != 3 or shape is None or len(shape) != 4:
        return None
    same_outer = packed.shape[0] == shape[0] and packed.shape[1] == shape[1]
    if not same_outer or not isinstance(shape[2], int):
        return None
    return Heads(packed, shape[2])


def _joined_heads(value: ir.Value) -> ir.Value | None:
    """What the attention's result becomes once its heads are joined again, when that is its only use."""
    transpose = _only_user(value)
    if not _is_transpose(transpose):
        return None
    assert transpose is not None
    reshape = _only_user(transpose.outputs[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    before, after = transpose.outputs[0].shape, reshape.outputs[0].shape
    if before is None or after is None or len(after) != 3 or before[0] != after[0] or before[1] != after[1]:
        return None
    return reshape.outputs[0]


def _is_transpose(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == HEADS_FIRST


def _only_user(value: ir.Value) -> ir.Node | None:
    users = list(value.consumers())
    return users[0] if len(users) == 1 and not value.is_graph_output() else None
