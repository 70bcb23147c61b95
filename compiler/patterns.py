"""Small tools for matching and editing graphs: read an argument by name, walk through layout, insert a typed call.

A matcher built on them answers with what it found, with a `Refusal` that says why not, or with None where there was
nothing to look at.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten

TRANSPOSES = frozenset(
    {aten.transpose.int, aten.permute.default, aten.t.default, aten.numpy_T.default, aten.mT.default}
)
RESHAPES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.flatten.using_ints,
        aten.unflatten.int,
    }
)
COPIES = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.lift_fresh.default,
    }
)
LAYOUT = TRANSPOSES | RESHAPES | COPIES
CASTS = frozenset({aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default})
DROPOUTS = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})

Target = Callable[..., Any]


def is_call(node: Any, *targets: Target) -> bool:
    """Whether `node` is a call of one of `targets`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def argument(node: fx.Node, name: str) -> Any:
    """The argument that the operator's schema calls `name`, given by position, by keyword or by default.

    Raises KeyError when the operator has no such argument.
    """
    if name in node.kwargs:
        return node.kwargs[name]
    schema = node.target._schema  # type: ignore[union-attr]
    for position, declared in enumerate(schema.arguments):
        if declared.name == name:
            return node.args[position] if position < len(node.args) else declared.default_value
    raise KeyError(f"{node.target} has no argument {name!r}")


def all_arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument by the name that the operator's schema gives it, in its order, defaults filled in."""
    declared = node.target._schema.arguments  # type: ignore[union-attr]
    return {one.name: argument(node, one.name) for one in declared}


def operands(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments, to be looked at without regard to their type."""
    return tuple(node.args)


def value(node: fx.Node) -> Tensor:
    """The fake tensor that stands for what `node` computes. Raises TypeError when it is no tensor."""
    found = node.meta.get("val")
    if not isinstance(found, Tensor):
        raise TypeError(f"{node.name} is {type(found).__name__}, not a tensor")
    return found


def has_tensor(node: Any) -> bool:
    """Whether `node` is a node whose value is a tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def same_size(left: Any, right: Any) -> bool:
    """Whether two sizes, which may be symbolic, are equal for every size the program allows. Adds no guard."""
    return left is right or bool(statically_known_true(left == right))


def same_shape(left: fx.Node, right: fx.Node) -> bool:
    """Whether two nodes have the same shape for every size the program allows."""
    ours, theirs = value(left).shape, value(right).shape
    return len(ours) == len(theirs) and all(same_size(a, b) for a, b in zip(ours, theirs, strict=True))


def static_size(node: fx.Node, dim: int) -> int | None:
    """The size of a dim where it is fixed, None where it is symbolic."""
    size = value(node).shape[dim]
    return size if isinstance(size, int) else None


def through(node: fx.Node, targets: Collection[Target]) -> fx.Node:
    """The first node upstream that is no call of `targets`, each of which passes its first argument on."""
    while is_call(node, *targets) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def forward_through(node: fx.Node, targets: Collection[Target]) -> fx.Node:
    """The last node downstream that is reached by single users which are calls of `targets`."""
    while len(node.users) == 1:
        (user,) = node.users
        if not is_call(user, *targets) or user.args[0] is not node:
            break
        node = user
    return node


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads `node`, or None when there are several or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_weight(node: Any) -> bool:
    """Whether `node` reads a weight by name."""
    return isinstance(node, fx.Node) and node.op == "get_attr" and has_tensor(node)


def scalar(item: Any) -> float | None:
    """The number that an argument stands for: a Python number, or a tensor without dims filled with a constant."""
    if isinstance(item, bool):
        return None
    if isinstance(item, (int, float)):
        return float(item)
    if isinstance(item, fx.Node) and has_tensor(item) and value(item).dim() == 0:
        return constant_fill(item)
    return None


_FILLS = {
    aten.full.default: "fill_value",
    aten.full_like.default: "fill_value",
    aten.new_full.default: "fill_value",
    aten.scalar_tensor.default: "s",
    aten.ones.default: 1,
    aten.ones_like.default: 1,
    aten.new_ones.default: 1,
    aten.zeros.default: 0,
    aten.zeros_like.default: 0,
    aten.new_zeros.default: 0,
}


def constant_fill(node: fx.Node) -> float | None:
    """The number that every element of `node` has, where it was made by `full`, `ones`, `zeros` and their like."""
    source = through(node, LAYOUT | CASTS | {aten.expand.default})
    if not is_call(source, *_FILLS):
        return None
    known = _FILLS[source.target]  # type: ignore[index]
    filled = argument(source, known) if isinstance(known, str) else known
    return float(filled) if isinstance(filled, (bool, int, float)) else None


def permutation(node: fx.Node) -> tuple[int, ...] | None:
    """Which input dim stands at each output dim, when `node` only reorders dims; otherwise None."""
    if not has_tensor(node):
        return None
    rank = value(node).dim()
    order = list(range(rank))
    if is_call(node, aten.permute.default):
        return tuple(dim % rank for dim in argument(node, "dims"))
    if is_call(node, aten.transpose.int):
        first, second = argument(node, "dim0") % max(rank, 1), argument(node, "dim1") % max(rank, 1)
    elif is_call(node, aten.t.default, aten.numpy_T.default) and rank <= 2:
        first, second = 0, max(rank - 1, 0)
    elif is_call(node, aten.mT.default) and rank >= 2:
        first, second = rank - 2, rank - 1
    else:
        return None
    if rank:
        order[first], order[second] = order[second], order[first]
    return tuple(order)


def insert_call(before: fx.Node, target: Target, *args: Any, like: fx.Node | None = None, **kwargs: Any) -> fx.Node:
    """A new call in front of `before`, with `meta["val"]` computed and the module stack of `like`, else of `before`."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    origin = before if like is None else like
    node.meta = {key: item for key, item in origin.meta.items() if key != "val"}
    node.meta["val"] = _fake_result(node)
    return node


def _fake_result(node: fx.Node) -> Any:
    """What `node` computes on the fake values of its inputs."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    sources = (*node.all_input_nodes, *node.graph.find_nodes(op="placeholder"))  # a symbolic int has no mode
    modes = (getattr(source.meta.get("val"), "fake_mode", None) for source in sources)
    mode = next((found for found in modes if found is not None), None)
    assert callable(node.target)
    if mode is None:
        return node.target(*args, **kwargs)
    with mode, torch.no_grad(), enable_python_dispatcher():
        return node.target(*args, **kwargs)


def replace(node: fx.Node, replacement: fx.Node) -> None:
    """Let every user of `node` read `replacement`, and drop `node` with what only it needed."""
    node.replace_all_uses_with(replacement)
    drop_nodes([node])


def drop_nodes(nodes: Iterable[fx.Node]) -> None:
    """Erase nodes that nothing reads, whether or not they count as having effects, with what only they needed."""
    for node in nodes:
        sources = node.all_input_nodes
        node.graph.erase_node(node)
        for source in sources:
            if not source._erased:
                erase_dead(source)


def erase_dead(node: fx.Node) -> None:
    """Erase `node` and, going upstream, everything that nothing reads any more."""
    waiting = [node]
    while waiting:
        candidate = waiting.pop()
        if candidate.users or candidate.op in ("placeholder", "output") or candidate._erased or candidate.is_impure():
            continue
        waiting.extend(candidate.all_input_nodes)
        candidate.graph.erase_node(candidate)


def upstream(node: fx.Node, stop: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """Every node that `node` depends on, nearest first, down to and including those for which `stop` holds."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        yield current
        if not stop(current):
            waiting.extend(current.all_input_nodes)


def in_graph_order(nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes, each once, in the order in which the graph runs them."""
    wanted = set(nodes)
    if not wanted:
        return ()
    return tuple(node for node in next(iter(wanted)).graph.nodes if node in wanted)


def unpacked_item(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The producer and the position, when `node` takes one item out of a tuple of results."""
    if node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[1], int):
        producer = node.args[0]
        assert isinstance(producer, fx.Node)
        return producer, node.args[1]
    return None


def drop_dead_code(graph: fx.Graph) -> None:
    """Erase what nothing reads, fused attention too: torch keeps it, since it may drop weights at random."""
    attention = aten.scaled_dot_product_attention.default
    graph.eliminate_dead_code(is_impure_node=lambda node: node.is_impure() and not is_call(node, attention))
