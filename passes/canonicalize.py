"""One way to write each thing: regions inlined, no-ops dropped, products with stored weights as linear.

Before:  wrap_with_set_grad_enabled(submodule); to(x, x.dtype); dropout(x, p, False); view(addmm(b, view(x), W))
After:   the submodule's nodes; x; x; linear(x, transpose(W, 0, 1), b)
Shapes:  those of the outputs stay; x [..., in_features], W [in_features, out_features].
Exact:   bit for bit, but for products that become linear, whose bias may be added in another order: 1e-6 in float32.
Refuses: to touch values that an operator writes to in place or whose strides one reads; training dropout; enabled
         autocast; addmm with beta or alpha other than 1; a copy that is returned.
Source:  the forms met in captures of 26 transformers architectures; each rule names what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from compiler.aliasing import make_functional, written_values
from compiler.hookspecs import hookimpl
from compiler.inlining import inline_regions
from compiler.patterns import (
    CASTS,
    DROPOUTS,
    argument,
    aten,
    constant_fill,
    drop_nodes,
    has_tensor,
    insert_call,
    is_call,
    is_weight,
    only_user,
    operands,
    permutation,
    replace,
    same_shape,
    same_size,
    scalar,
    unpacked_item,
    value,
)
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite

Rule = Callable[[fx.Node], fx.Node | None]

ALIASES = frozenset({aten.alias.default, aten.detach.default, aten.lift_fresh.default, aten.positive.default})
COPIES = frozenset({aten.clone.default, aten.contiguous.default, aten.lift_fresh_copy.default})
VIEWS = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default})
CHECKS = frozenset({aten._assert_tensor_metadata.default})
SCALAR_CHECKS = frozenset({aten._assert_scalar.default, aten._assert_async.msg})


def drop_dropout(node: fx.Node) -> fx.Node | None:
    """dropout(x, p, train=False) and dropout(x, 0, ...) are x."""
    if is_call(node, *DROPOUTS) and (not argument(node, "train") or argument(node, "p") == 0):
        return _first(node)
    return None


def drop_cast(node: fx.Node) -> fx.Node | None:
    """A cast to the dtype and device that x has is x; any other cast is written to(x, dtype)."""
    if not is_call(node, *CASTS, aten.type_as.default, aten.to.other) or not has_tensor(node):
        return None
    source = _first(node)
    if value(source).device != value(node).device:
        return None
    if value(source).dtype == value(node).dtype:
        return source
    if is_call(node, aten.to.dtype) and len(node.args) == 2 and not node.kwargs:
        return None
    return insert_call(node, aten.to.dtype, source, value(node).dtype)


def drop_softmax_cast(node: fx.Node) -> fx.Node | None:
    """softmax(x, dim, dtype) with the dtype that x has is softmax(x, dim)."""
    if not is_call(node, aten.softmax.int) or argument(node, "dtype") is None:
        return None
    source = _first(node)
    if value(source).dtype != argument(node, "dtype"):
        return None
    return insert_call(node, aten.softmax.int, source, argument(node, "dim"))


def drop_alias(node: fx.Node) -> fx.Node | None:
    """alias, detach and their like are x. So is a copy, unless it is returned: the caller may write to what it gets."""
    if is_call(node, *ALIASES):
        return _first(node)
    if is_call(node, *COPIES) and not any(user.op == "output" for user in node.users):
        return _first(node)
    return None


def drop_full_slice(node: fx.Node) -> fx.Node | None:
    """A slice of step 1 that keeps a dim's size is x."""
    if is_call(node, aten.slice.Tensor) and argument(node, "step") == 1 and same_shape(node, _first(node)):
        return _first(node)
    return None


def drop_same_shape(node: fx.Node) -> fx.Node | None:
    """A reshape, expand or squeeze that changes no size is x."""
    shaped = (*VIEWS, aten.expand.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
    return _first(node) if is_call(node, *shaped) and same_shape(node, _first(node)) else None


def drop_added_dim(node: fx.Node) -> fx.Node | None:
    """squeeze(unsqueeze(x, d), d) is x, and so is an item of unbind(cat([unsqueeze(x, d), ...], d), d)."""
    item = unpacked_item(node)
    taken, position = (node, 0) if item is None else item
    if not is_call(taken, aten.squeeze.dim if item is None else aten.unbind.int):
        return None
    joined = _first(taken) if isinstance(taken.args[0], fx.Node) else None
    if joined is None:
        return None
    dim, rank = argument(taken, "dim"), value(joined).dim()
    parts = [joined]
    if item is not None and is_call(joined, aten.cat.default) and argument(joined, "dim") % rank == dim % rank:
        parts = list(operands(joined)[0])
    if not all(is_call(part, aten.unsqueeze.default) and argument(part, "dim") % rank == dim % rank for part in parts):
        return None
    return _first(parts[position])


def write_view_as_reshape(node: fx.Node) -> fx.Node | None:
    """view(x, sizes) is reshape(x, sizes), also where x is not contiguous; reshape(reshape(x)) is one reshape."""
    if not is_call(node, *VIEWS):
        return None
    source, sizes = operands(node)
    inner = _first(source) if is_call(source, *VIEWS) else source
    if is_call(node, aten.reshape.default) and inner is source:
        return None
    return insert_call(node, aten.reshape.default, inner, sizes)


def write_transpose(node: fx.Node) -> fx.Node | None:
    """Any reordering of dims is transpose(x, i, j), 0 <= i < j, or permute where more dims move; two become one.

    Only a key turned for its product keeps that turn apart, so that [batch, heads, keys, head_dim] stays in sight.
    """
    order = permutation(node)
    if order is None:
        return None
    source, rank = _first(node), len(order)
    inner = permutation(source)
    whole = order if inner is None else tuple(inner[dim] for dim in order)
    turn = (*range(rank - 2), rank - 1, rank - 2)
    if _is_turned_key(node, whole) and whole != turn:
        if inner is None:
            heads_first = insert_call(node, aten.permute.default, source, [whole[dim] for dim in turn])
            return insert_call(node, aten.transpose.int, heads_first, rank - 2, rank - 1)
    elif inner is not None:
        source, order = _first(source), whole
    moved = [dim for dim, origin in enumerate(order) if dim != origin]
    if not moved:
        return source
    target, dims = (aten.transpose.int, moved) if len(moved) == 2 else (aten.permute.default, [list(order)])
    return None if (node.target, *node.args) == (target, source, *dims) else insert_call(node, target, source, *dims)


def _is_turned_key(node: fx.Node, order: tuple[int, ...]) -> bool:
    """Whether `node`, or a number times it, is the right operand of a product, with the last dim of what was reordered
    now second to last.
    """
    right_operands: dict[Any, int] = {aten.matmul.default: 1, aten.bmm.default: 1, aten.baddbmm.default: 2}
    last = len(order) - 1
    if last < 2 or order[-2] != last:
        return False
    scaled = only_user(node)
    while scaled is not None and is_call(scaled, aten.mul.Tensor, aten.div.Tensor) and scaled.args[0] is node:
        node, scaled = scaled, only_user(scaled)
    products = (user for user in node.users if is_call(user, *right_operands))
    return any(user.args[right_operands[user.target]] is node for user in products)


def write_merged_turn(node: fx.Node) -> fx.Node | None:
    """reshape(transpose(reshape(x, [-1, a, b]), 1, 2), [..., b, a]) is transpose(reshape(x, [..., a, b]), -2, -1)."""
    if not is_call(node, *VIEWS):
        return None
    turned, sizes = operands(node)
    if permutation(turned) != (0, 2, 1) or not is_call(_first(turned), *VIEWS):
        return None
    rank = len(sizes)
    if rank < 3 or not all(same_size(value(turned).shape[dim], value(node).shape[dim]) for dim in (-2, -1)):
        return None
    unmerged = insert_call(node, aten.reshape.default, _first(_first(turned)), [*sizes[:-2], sizes[-1], sizes[-2]])
    return insert_call(node, aten.transpose.int, unmerged, rank - 2, rank - 1)


def drop_neutral_number(node: fx.Node) -> fx.Node | None:
    """x + 0, x - 0, x * 1, x / 1 and x & True are x, where dtype and shape stay."""
    if is_call(node, aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar):
        neutral = 0
    elif is_call(node, aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar, aten.bitwise_and.Tensor):
        neutral = 1
    else:
        return None
    left, right = operands(node)[:2]
    commutes = not is_call(node, aten.sub.Tensor, aten.sub.Scalar, aten.div.Tensor, aten.div.Scalar)
    for kept, dropped in ((left, right), (right, left))[: 1 + commutes]:
        number = constant_fill(dropped) if has_tensor(dropped) else scalar(dropped)
        if number == neutral and has_tensor(kept) and same_shape(node, kept):
            alike = value(kept).dtype == value(node).dtype
            if alike and (not is_call(node, aten.bitwise_and.Tensor) or value(kept).dtype == torch.bool):
                return kept  # type: ignore[no-any-return]
    return None


def write_bitwise(node: fx.Node) -> fx.Node | None:
    """`a & b`, `a | b` and logical_and of booleans have one name each."""
    names: dict[Any, Any] = {
        aten.__and__.Tensor: aten.bitwise_and.Tensor,
        aten.__or__.Tensor: aten.bitwise_or.Tensor,
        aten.logical_and.default: aten.bitwise_and.Tensor,
        aten.logical_or.default: aten.bitwise_or.Tensor,
    }
    if not is_call(node, *names) or any(value(source).dtype != value(node).dtype for source in node.all_input_nodes):
        return None
    return insert_call(node, names[node.target], *node.args)


def write_product_as_linear(node: fx.Node) -> fx.Node | None:
    """addmm(b, x, W), mm(x, W) and matmul(x, W) with a stored W [in, out] are linear(x, transpose(W, 0, 1), b)."""
    bias = None
    if is_call(node, aten.addmm.default):
        bias, x, stored = operands(node)
        plain = argument(node, "beta") == 1 and argument(node, "alpha") == 1
        if not plain or not _is_bias(bias, node):
            return None
    elif is_call(node, aten.mm.default, aten.matmul.default):
        x, stored = operands(node)
    else:
        return None
    if not _is_stored_matrix(stored) or _is_stored_matrix(x) or value(x).dim() < 2:
        return None
    weight = insert_call(node, aten.transpose.int, stored, 0, 1)
    return insert_call(node, aten.linear.default, x, weight, *([] if bias is None else [bias]))


def add_bias_to_linear(node: fx.Node) -> fx.Node | None:
    """linear(x, W) + b with a stored b [out] is linear(x, W, b)."""
    if not is_call(node, aten.add.Tensor) or argument(node, "alpha") != 1:
        return None
    left, right = operands(node)
    for linear, bias in ((left, right), (right, left)):
        bare = is_call(linear, aten.linear.default) and argument(linear, "bias") is None
        if bare and only_user(linear) is node and _is_bias(bias, linear):
            x, weight = operands(linear)[:2]
            return insert_call(node, aten.linear.default, x, weight, bias, like=linear)
    return None


def unflatten_linear(node: fx.Node) -> fx.Node | None:
    """reshape(linear(reshape(x, [-1, in])), sizes) is reshape(linear(x), sizes): linear takes any leading dims."""
    if not is_call(node, aten.reshape.default) or not is_call(node.args[0], aten.linear.default):
        return None
    linear, sizes = operands(node)
    flat, *weights = operands(linear)
    if not is_call(flat, *VIEWS) or only_user(linear) is None:
        return None
    x = _first(flat)
    if value(x).dim() < 2 or not same_size(value(x).shape[-1], value(flat).shape[-1]):
        return None
    whole = insert_call(node, aten.linear.default, x, *weights, like=linear)
    return insert_call(node, aten.reshape.default, whole, sizes)


RULES: tuple[Rule, ...] = (
    drop_dropout,
    drop_cast,
    drop_softmax_cast,
    drop_alias,
    drop_full_slice,
    drop_same_shape,
    drop_added_dim,
    write_merged_turn,
    write_view_as_reshape,
    write_transpose,
    write_bitwise,
    drop_neutral_number,
    write_product_as_linear,
    add_bias_to_linear,
    unflatten_linear,
)


@dataclass(frozen=True)
class Canonicalize(Rewrite):
    """Applies `RULES` until none of them finds anything."""

    name: ClassVar[str] = "canonicalize"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the nodes that went."""
        graph = program.graph
        changed = [*inline_regions(program.graph_module), *_drop_checks(graph), *make_functional(graph)]
        written = written_values(graph)
        before = -1
        while before != len(changed):
            before = len(changed)
            for node in list(graph.nodes):
                if node._erased or node.op != "call_function":
                    continue
                if not written.isdisjoint({node, *node.all_input_nodes}):
                    continue
                replacement = next((found for rule in RULES if (found := rule(node)) is not None), None)
                if replacement is not None:
                    changed.append(node.name)
                    replace(node, replacement)
        dead = len(graph.nodes)
        graph.eliminate_dead_code()
        if changed or len(graph.nodes) != dead:
            program.refresh()
        return PassResult(changed=tuple(changed))


def _drop_checks(graph: fx.Graph) -> list[str]:
    """Drop checks that cannot fail: those of dtype and device, which the graph fixes, and those of a known truth."""
    dead = [node for node in graph.nodes if is_call(node, *CHECKS) or _holds_always(node)]
    drop_nodes(dead)
    return [node.name for node in dead]


def _holds_always(node: fx.Node) -> bool:
    if not is_call(node, *SCALAR_CHECKS):
        return False
    condition = operands(node)[0]
    return condition is True or (isinstance(condition, fx.Node) and condition.meta.get("val") is True)


def _first(node: fx.Node) -> fx.Node:
    """The first argument, which the operators above all pass on."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _is_bias(node: Any, product: fx.Node) -> bool:
    """Whether `node` is a stored vector with one number for every output feature of `product`."""
    return is_weight(node) and value(node).dim() == 1 and same_size(value(node).shape[0], value(product).shape[-1])


def _is_stored_matrix(node: Any) -> bool:
    """Whether `node` is a stored 2-d weight, transposed or not."""
    source = _first(node) if isinstance(node, fx.Node) and permutation(node) == (1, 0) else node
    return is_weight(source) and value(source).dim() == 2


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [Canonicalize]
