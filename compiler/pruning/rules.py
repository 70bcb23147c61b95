"""How operators hand on units that were taken out of their operands: one rule an operator, or none.

A rule is called where at least one operand lacks positions. It puts the node at its new sizes into the copy and says
what its value lacks. Sizes are written anew from the shapes in the graph; a symbolic one is read from the operand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from compiler.patterns import (
    CASTS,
    COPIES,
    RESHAPES,
    all_arguments,
    argument,
    aten,
    has_tensor,
    operands,
    permutation,
    same_size,
    static_size,
    unpacked_item,
    value,
)
from compiler.pruning.narrowing import Kept, NarrowedPart, NarrowingError
from compiler.sites.activations import ELEMENTWISE
from compiler.sites.attention import SDPA
from compiler.sites.channel_groups import POOLS, is_depthwise, is_pointwise
from compiler.sites.norm import BATCH_NORMS
from compiler.sites.spans import SPLITS

Rule = Callable[[NarrowedPart, fx.Node], None]

ROTARY_OP, ATTENTION_OP, RMS_NORM_OP = (
    f"regraft.{name}.default" for name in ("rotary_embedding", "attention", "rms_norm")
)
LARGEST_MASK = 2**22
"""Positions of a reshaped value that are told one by one."""


def rule_of(node: fx.Node) -> Rule | None:
    """The rule for the operator of `node`; None where there is none."""
    if node.target in _RULES:
        return _RULES[node.target]
    if str(node.target) in _OWN_RULES:
        return _OWN_RULES[str(node.target)]
    if unpacked_item(node) is not None:
        return _item
    if permutation(node) is not None:
        return _permuted
    if is_depthwise(node):
        return _depthwise
    return _elementwise if is_pointwise(node) else None


def _elementwise(part: NarrowedPart, node: fx.Node) -> None:
    """Operands are broadcast: dims are counted from the last."""
    rank = value(node).dim()
    tensors = [one for one in node.all_input_nodes if has_tensor(one)]
    lacking = {(kept.dim - value(one).dim(), kept.positions) for one in tensors if (kept := part.narrowed(one))}
    if len(lacking) != 1:
        raise NarrowingError("its operands lack other units", node)
    ((from_last, positions),) = lacking

    def operand(one: fx.Node) -> fx.Node:
        if part.narrowed(one) is not None or not has_tensor(one):
            return part.read(one)
        dim = value(one).dim() + from_last
        is_wide = dim >= 0 and not same_size(value(one).shape[dim], 1)
        return part.select(one, Kept(dim, positions)) if is_wide else part.read(one)

    part.new[node] = part.graph.node_copy(node, operand)
    part.kept[node] = Kept(rank + from_last, positions)


def _same_dim(part: NarrowedPart, node: fx.Node) -> None:
    """The first operand alone lacks something, and the result lacks the same."""
    part.new[node] = part.graph.node_copy(node, part.read)
    part.kept[node] = _only_first(part, node)


def _rows_alike(part: NarrowedPart, node: fx.Node) -> None:
    """What is computed along the last dims, row by row: those of `normalized_shape`, or else one."""
    kept = _only_first(part, node)
    along = len(all_arguments(node).get("normalized_shape", (1,)))
    if kept.dim >= value(operands(node)[0]).dim() - along:
        raise NarrowingError("it is computed over the units themselves", node)
    _same_dim(part, node)


def _permuted(part: NarrowedPart, node: fx.Node) -> None:
    order, kept = permutation(node), _only_first(part, node)
    assert order is not None
    part.new[node] = part.graph.node_copy(node, part.read)
    part.kept[node] = Kept(order.index(kept.dim), kept.positions)


def _reshaped(part: NarrowedPart, node: fx.Node) -> None:
    source = operands(node)[0]
    kept = reshaped_kept(node, _only_first(part, node))
    part.new[node] = part.call(aten.reshape.default, part.read(source), _sizes(part, node, source, kept))
    part.kept[node] = kept


def reshaped_kept(node: fx.Node, kept: Kept) -> Kept:
    """What a reshaped value lacks. Raises NarrowingError where that is not some positions of one dim."""
    source, shape = value(operands(node)[0]).shape, list(value(node).shape)
    behind = list(source[kept.dim :])
    if not all(isinstance(size, int) for size in behind):
        raise NarrowingError("sizes behind the units are not fixed", node)
    total = math.prod(behind)
    first, covered = len(shape), 1
    while first > 0 and covered < total and isinstance(shape[first - 1], int):
        first -= 1
        covered *= shape[first]
    if covered % total or covered > LARGEST_MASK:
        raise NarrowingError("units do not stay together", node)
    left = torch.zeros(behind[0], dtype=torch.bool)
    left[list(kept.positions)] = True
    mask = left.repeat_interleave(total // behind[0]).repeat(covered // total).reshape(shape[first:])
    for dim in range(mask.dim()):
        rest = [other for other in range(mask.dim()) if other != dim]
        whole = mask.sum(rest) == mask.numel() // mask.shape[dim] if rest else mask
        if int(whole.sum()) * (mask.numel() // mask.shape[dim]) == int(mask.sum()):
            return Kept(first + dim, tuple(int(one) for one in whole.nonzero().flatten()))
    raise NarrowingError("units do not stay together", node)


def _expanded(part: NarrowedPart, node: fx.Node) -> None:
    source = operands(node)[0]
    kept = _only_first(part, node)
    added = value(node).dim() - value(source).dim()
    sizes: list[Any] = []
    for dim, size in enumerate(value(node).shape):
        is_same = dim >= added and same_size(value(source).shape[dim - added], size)
        if not is_same and not isinstance(size, int):
            raise NarrowingError("it is repeated as often as an input says", node)
        sizes.append(-1 if is_same else size)
    part.new[node] = part.call(aten.expand.default, part.read(source), sizes)
    part.kept[node] = Kept(kept.dim + added, kept.positions)


def _sliced(part: NarrowedPart, node: fx.Node) -> None:
    kept, source = _only_first(part, node), operands(node)[0]
    dim = argument(node, "dim") % value(source).dim()
    if dim != kept.dim:
        _same_dim(part, node)
        return
    size = static_size(source, dim)
    given = argument(node, "start"), argument(node, "end"), argument(node, "step")
    if size is None or any(isinstance(one, fx.Node) for one in given):
        raise NarrowingError("it takes as much as an input says", node)
    wanted = range(size)[slice(*given)]
    positions = tuple(index for index, one in enumerate(wanted) if one in kept.positions)
    places = [kept.positions.index(wanted[index]) for index in positions]
    if not places:
        raise NarrowingError("none of the units that it takes are left", node)
    if places != list(range(places[0], places[-1] + 1)):
        raise NarrowingError("it takes units that no longer lie side by side", node)
    part.new[node] = part.call(aten.slice.Tensor, part.read(source), dim, places[0], places[-1] + 1)
    part.kept[node] = Kept(dim, positions)


def _split(part: NarrowedPart, node: fx.Node) -> None:
    kept, source = _only_first(part, node), operands(node)[0]
    dim = argument(node, "dim") % value(source).dim()
    if dim != kept.dim:
        part.new[node] = part.graph.node_copy(node, part.read)
        part.kept[node] = (kept,) * len(node.meta["val"])
        return
    pieces = [int(piece.shape[dim]) for piece in node.meta["val"]]
    starts = [sum(pieces[:index]) for index in range(len(pieces))]
    found = [
        tuple(one - start for one in kept.positions if start <= one < start + size)
        for start, size in zip(starts, pieces, strict=True)
    ]
    sizes = [len(positions) for positions in found]
    part.new[node] = part.call(aten.split_with_sizes.default, part.read(source), sizes, dim)
    part.kept[node] = tuple(Kept(dim, positions) for positions in found)


def _item(part: NarrowedPart, node: fx.Node) -> None:
    item = unpacked_item(node)
    assert item is not None
    left = part.kept[item[0]]
    if not isinstance(left, tuple):
        raise NarrowingError("it is taken from a value of another kind", node)
    part.new[node] = part.graph.node_copy(node, part.read)
    kept = left[item[1]]
    if kept is not None:
        part.kept[node] = kept


def _joined(part: NarrowedPart, node: fx.Node) -> None:
    parts = operands(node)[0]
    lacking = {part.narrowed(one) for one in parts}
    (kept, *others) = lacking
    dim = argument(node, "dim") % value(node).dim()
    if others or kept is None or kept.dim == dim:
        raise NarrowingError("what it joins does not lack the same units", node)
    part.new[node] = part.graph.node_copy(node, part.read)
    part.kept[node] = kept


def _channels(part: NarrowedPart, node: fx.Node) -> None:
    """Pools: dims from 2 on are pooled."""
    kept = _only_first(part, node)
    spatial = 1 if "1d" in str(node.target) else 2
    if kept.dim >= value(operands(node)[0]).dim() - spatial:
        raise NarrowingError("it pools over the units themselves", node)
    _same_dim(part, node)


def _batch_norm(part: NarrowedPart, node: fx.Node) -> None:
    x, kept = operands(node)[0], _only_first(part, node)
    if kept.dim != 1:
        raise NarrowingError("its channels are other units", node)
    vectors = Kept(0, kept.positions)
    part.new[node] = part.graph.node_copy(node, lambda one: part.read(one) if one is x else part.select(one, vectors))
    part.kept[node] = kept


def _depthwise(part: NarrowedPart, node: fx.Node) -> None:
    kept, weight, bias = _only_first(part, node), argument(node, "weight"), argument(node, "bias")
    if kept.dim != 1:
        raise NarrowingError("its channels are other units", node)
    rows = Kept(0, kept.positions)
    given = [argument(node, one.name) for one in node.target._schema.arguments[3:-1]]  # type: ignore[union-attr]
    left = [part.select(weight, rows), None if bias is None else part.select(bias, rows)]
    part.new[node] = part.call(node.target, part.read(operands(node)[0]), *left, *given, len(kept.positions))
    part.kept[node] = kept


def _attention(part: NarrowedPart, node: fx.Node) -> None:
    """Heads are dim 1 of query, key and value, and of a mask that has one for each."""
    query, key, value_ = operands(node)[:3]
    lacking = [part.narrowed(one) for one in (query, key, value_)]
    heads = [_left(one, kept, node) for one, kept in zip((query, key, value_), lacking, strict=True)]
    repeats, now = value(query).shape[1] // value(key).shape[1], len(heads[0]) / len(heads[1])
    fits = all(heads[1][int(place / now)] == head // repeats for place, head in enumerate(heads[0]))
    if heads[1] != heads[2] or now % 1 or not fits:
        raise NarrowingError("query heads are not left with their key and value heads", node)
    kept = Kept(1, heads[0])
    mask = argument(node, "mask" if str(node.target) == ATTENTION_OP else "attn_mask")

    def operand(one: fx.Node) -> fx.Node:
        if one is not mask:
            return part.read(one)
        dim = value(one).dim() - 3
        is_wide = dim >= 0 and not same_size(value(one).shape[dim], 1)
        return part.select(one, Kept(dim, heads[0])) if is_wide else part.read(one)

    part.new[node] = part.graph.node_copy(node, operand)
    if lacking[0] is not None:
        part.kept[node] = kept


def _left(node: fx.Node, kept: Kept | None, at: fx.Node) -> tuple[int, ...]:
    """The heads of a query, key or value that are left."""
    if kept is not None and kept.dim != 1:
        raise NarrowingError("what it is given lacks something else than heads", at)
    return tuple(range(static_size(node, 1) or 0)) if kept is None else kept.positions


def _only_first(part: NarrowedPart, node: fx.Node) -> Kept:
    """What the first operand lacks, where the others lack nothing."""
    first, *others = node.all_input_nodes
    kept = part.narrowed(first)
    if kept is None or any(part.kept.get(other) is not None for other in others):
        raise NarrowingError("another operand than the first lacks units", node)
    return kept


def _sizes(part: NarrowedPart, node: fx.Node, source: fx.Node, kept: Kept) -> list[Any]:
    """The sizes of a reshaped value: numbers, sizes of `source`, and -1 for one that is neither."""
    sizes: list[Any] = []
    for dim, size in enumerate(value(node).shape):
        known = [at for at, one in enumerate(value(source).shape) if same_size(one, size)]
        fixed = len(kept.positions) if dim == kept.dim else static_size(node, dim)
        if fixed is not None:
            sizes.append(fixed)
        else:
            sizes.append(part.call(aten.sym_size.int, part.read(source), known[0]) if known else -1)
    if sizes.count(-1) > 1:
        raise NarrowingError("its sizes come from elsewhere", node)
    return sizes


def _softmax_like(part: NarrowedPart, node: fx.Node) -> None:
    kept = _only_first(part, node)
    if kept.dim == argument(node, "dim") % value(node).dim():
        raise NarrowingError("it is computed over the units themselves", node)
    _same_dim(part, node)


def _mean(part: NarrowedPart, node: fx.Node) -> None:
    kept, rank = _only_first(part, node), value(operands(node)[0]).dim()
    dims = {dim % rank for dim in argument(node, "dim") or range(rank)}
    if kept.dim in dims:
        raise NarrowingError("it is computed over the units themselves", node)
    before = 0 if argument(node, "keepdim") else sum(dim < kept.dim for dim in dims)
    part.new[node] = part.graph.node_copy(node, part.read)
    part.kept[node] = Kept(kept.dim - before, kept.positions)


_RULES: dict[Any, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(CASTS | COPIES, _same_dim),
    **dict.fromkeys(RESHAPES, _reshaped),
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(POOLS, _channels),
    **dict.fromkeys(SPLITS, _split),
    aten.expand.default: _expanded,
    aten.slice.Tensor: _sliced,
    aten.cat.default: _joined,
    aten.layer_norm.default: _rows_alike,
    aten.mean.dim: _mean,
    aten.rms_norm.default: _rows_alike,
    aten.softmax.int: _softmax_like,
    SDPA: _attention,
}
_OWN_RULES: dict[str, Rule] = {ATTENTION_OP: _attention, ROTARY_OP: _rows_alike, RMS_NORM_OP: _rows_alike}
