"""Sort only for the first items where only those are used: ONNX Runtime then keeps a heap of k and sorts no more.

Before:  values, places = TopK(x, size of the whole dim); Slice(values, [0], [k], axis), Slice(places, [0], [k], axis)
After:   values, places = TopK(x, k)
Exact:   the same numbers: TopK takes the lower index first among equal values, whatever k is.
Leaves:  items used otherwise; slices along another axis, of different lengths, or to an end that is not stored.
A dim of unknown size may be smaller than k: then the count is Min(size, k).
"""

from __future__ import annotations

import onnx_ir as ir


def sort_leading_items_only(graph: ir.Graph) -> int:
    """Rewrite every such TopK; how many."""
    return sum(_rewrite(node, graph) for node in list(graph) if node.op_type == "TopK" and node.domain == "")


def _rewrite(node: ir.Node, graph: ir.Graph) -> bool:
    x = node.inputs[0]
    slices = [user for value in node.outputs for user in value.consumers()]
    if x is None or x.shape is None or not slices or any(value.is_graph_output() for value in node.outputs):
        return False
    axis = node.attributes.get_int("axis", -1) % len(x.shape)
    ends = {_end_of_leading_items(one, axis, len(x.shape)) for one in slices}
    end = ends.pop() if len(ends) == 1 else None
    wanted, size = _number(end), x.shape[axis]
    if end is None or wanted is None or wanted < 0:
        return False
    if not isinstance(size, int) or size < wanted:
        smaller = ir.node("Min", [node.inputs[1], end])
        graph.insert_before(node, smaller)
        end = smaller.outputs[0]
        end.name = f"{node.name}.count"
    outputs = [ir.Value(name=value.name, type=value.type) for value in node.outputs]
    first = ir.Node("", "TopK", [x, end], list(node.attributes.values()), outputs=outputs, name=node.name)
    graph.insert_before(node, first)
    for old, new in zip(node.outputs, outputs, strict=True):
        for one, _ in list(old.uses()):
            result = one.outputs[0]
            new.shape, new.name = result.shape, result.name
            old.name, result.name = f"{old.name}.whole", f"{result.name}.sliced"
            result.replace_all_uses_with(new, replace_graph_outputs=True)
    return True


def _end_of_leading_items(node: ir.Node, axis: int, rank: int) -> ir.Value | None:
    """`k` of a Slice that takes items 0 to k along `axis`."""
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    starts, ends, axes, *steps = node.inputs[1:]
    is_first = _number(starts) == 0 and all(_number(step) == 1 for step in steps)
    along = _number(axes)
    return ends if is_first and along is not None and along % rank == axis else None


def _number(value: ir.Value | None) -> int | None:
    """The only number of a stored tensor."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return int(value.const_value.numpy().item())
