"""linear and embedding of dequantized weights  ->  quantized operators on the blocks of the file

Before:  linear(x, W), embedding(indices, W) with W float32, as transformers dequantizes it
After:   quantized_linear(x, codes, scales, zeros), quantized_embedding(indices, view(codes), scales, zeros)

Nothing is rounded: a weight is only replaced by blocks that stand for the same numbers. transformers moves the rows of
some tensors into another order (llama's queries and keys, for their rotary embedding); blocks lie within rows and move
with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler.frontends.gguf_blocks import BLOCK_BYTES, BLOCK_SIZE, BlockRows, read_blocks
from compiler.ops import quantized_embedding, quantized_linear  # noqa: F401  (they register the operators)
from compiler.patterns import argument, aten, erase_dead, in_graph_order, replace
from compiler.program import Program
from compiler.sites import Site, find_sites

ROUNDING = 2e-6
"""Of the largest weight: d * q + m and d * (q - z) round differently."""

_LINEAR = torch.ops.regraft.quantized_linear.default
_EMBEDDING = torch.ops.regraft.quantized_embedding.default

Reorder = Callable[[str, "np.ndarray[Any, Any]"], "np.ndarray[Any, Any] | None"]
"""Name and matrix of a tensor of the file -> the matrix as transformers loads it, None where it makes more of it."""


def hold_blocks(program: Program, tensors: Iterable[Any], names: Mapping[str, str], reorder: Reorder) -> list[str]:
    """Replace the float weights of `program` whose blocks are in the file; what was done, in sentences.

    `tensors` are gguf's, `names` maps theirs to weights of the Program, `reorder` does to a matrix of a given name what
    transformers does while loading it.
    """
    readers = _sites_by_weight(program)
    held: Counter[str] = Counter()
    floats: Counter[str] = Counter()
    fractional = 0
    for tensor in tensors:
        form, name = tensor.tensor_type.name, names.get(tensor.name, "")
        if name not in readers or len(tensor.shape) != 2 or form in ("F32", "F16", "BF16"):
            continue
        blocks = _matching_blocks(tensor, form, program.weight(name).detach(), reorder)
        if blocks is None or not _serves(blocks, readers[name], program, name):
            floats[form] += 1
            continue
        _replace(program, name, readers[name], blocks)
        held[form] += 1
        fractional += not blocks.has_whole_zero_points
    if held:
        program.refresh()
    return _sentences(held, floats, fractional)


def _sites_by_weight(program: Program) -> dict[str, list[Site]]:
    found: dict[str, list[Site]] = {}
    for site in find_sites(program, ("linear", "embedding")):
        if isinstance(site, Site):
            found.setdefault(site.bindings["weight"], []).append(site)
    return found


def _matching_blocks(tensor: Any, form: str, weight: Tensor, reorder: Reorder) -> BlockRows | None:
    """The tensor's blocks in the order of the rows of `weight`; None where they do not stand for its numbers."""
    if form not in BLOCK_BYTES:
        return None
    blocks = read_blocks(tensor.data, form)
    if blocks.scales.shape[0] != weight.shape[0]:
        return None
    places = np.arange(len(weight), dtype=np.float32)[:, None]
    moved = reorder(tensor.name, places)
    if moved is None or moved.shape != places.shape:
        return None
    order = torch.from_numpy(np.ascontiguousarray(moved[:, 0])).to(torch.int64)
    if not torch.equal(order, torch.arange(len(order))):
        if not torch.equal(order.sort().values, torch.arange(len(order))):
            return None
        blocks = blocks.rows(order)
    values = blocks.values()
    if values.shape != weight.shape or not bool(torch.isfinite(values).all()):
        return None
    return blocks if float((values - weight).abs().max()) <= ROUNDING * float(weight.abs().max()) else None


def _serves(blocks: BlockRows, sites: list[Site], program: Program, name: str) -> bool:
    """Whether every reader of the weight has an operator for these blocks: tables take whole zero points only."""
    readers = {user for node in program.graph.find_nodes(op="get_attr", target=name) for user in node.users}
    if readers != {site.output for site in sites} or any(site.bindings.get("weight_transposed") for site in sites):
        return False
    return blocks.has_whole_zero_points or all(site.kind == "linear" for site in sites)


def _replace(program: Program, name: str, sites: list[Site], blocks: BlockRows) -> None:
    """Put the blocks under the weight's own name, their scales and zero points beside it."""
    graph = program.graph
    floats = list(graph.find_nodes(op="get_attr", target=name))
    path = name.rpartition(".")[0]
    stored = {name: blocks.weight, program.free_name(f"{path}.scales"): blocks.scales}
    if blocks.zero_points is not None:
        stored[program.free_name(f"{path}.zero_points")] = blocks.zero_points
    for key, tensor in stored.items():
        program.set_weight(key, tensor, trainable=False)
    first = in_graph_order(site.output for site in sites)[0]
    with graph.inserting_before(first):
        read = [graph.get_attr(key) for key in stored]
    weight, scales, points = (*read, None)[:3]
    for site in sites:
        with graph.inserting_before(site.output):
            if site.kind == "linear":
                bias = argument(site.output, "bias")
                made = graph.call_function(
                    _LINEAR, (site.inputs[0], weight, scales, points, bias, blocks.bits, BLOCK_SIZE)
                )
            else:
                rows = graph.call_function(aten.view.default, (weight, [len(blocks.weight), -1]))
                made = graph.call_function(_EMBEDDING, (site.inputs[0], rows, scales, points, blocks.bits, BLOCK_SIZE))
        made.meta = {key: held for key, held in site.output.meta.items() if key == "nn_module_stack"}
        replace(site.output, made)
    for node in floats:
        erase_dead(node)


def _sentences(held: Counter[str], floats: Counter[str], fractional: int) -> list[str]:
    sentences = []
    if held:
        counts = ", ".join(f"{count} {form}" for form, count in sorted(held.items()))
        text = f"quantized tensors stay as they are in the file, block for block: {counts}"
        if fractional:
            text += f"; {fractional} have zero points between codes, whose sums are added in float"
        sentences.append(text + " (dequantize gives floats)")
    if floats:
        counts = ", ".join(f"{count} {form}" for form, count in sorted(floats.items()))
        sentences.append(f"quantized tensors whose blocks no kernel reads are floats here: {counts}")
    return sentences
