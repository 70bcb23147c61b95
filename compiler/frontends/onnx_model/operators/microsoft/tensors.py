"""Operators of com.microsoft that ONNX has since taken over, or has under another name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import find_operator, operator
from compiler.frontends.onnx_model.operators.microsoft import MICROSOFT


def standard(name: str, version: int) -> Any:
    """The function of ONNX's own operator."""
    entry = find_operator("", name, version)
    assert entry is not None
    return entry.function


@operator("Trilu", domain=MICROSOFT)
def trilu(x: Tensor, k: Known | None = None, *, upper: int = 1) -> Any:
    return standard("Trilu", 14)(x, k, upper=upper)


@operator("Inverse", domain=MICROSOFT)
def inverse(x: Tensor) -> Tensor:
    """As in the kernel, a singular matrix gives no error."""
    inverted: Tensor = torch.linalg.inv_ex(x).inverse
    return inverted


@operator("GridSample", domain=MICROSOFT)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> Tensor:
    return torch.nn.functional.grid_sample(x, grid, mode, padding_mode, bool(align_corners))


@operator("Pad", domain=MICROSOFT)
def pad(data: Tensor, pads: Known, value: Known | None = None, *, mode: str = "constant", node: NodeContext) -> Any:
    """pads [2 * rank] or [1, 2 * rank]."""
    return standard("Pad", 11)(data, Known(pads.array.reshape(-1), pads.dtype), value, mode=mode, node=node)


@operator("Unique", domain=MICROSOFT)
def unique(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different values in the order of their first appearance, which one every item is, and their counts."""
    values, _, which, counts = standard("Unique", 11)(x, sorted=0)
    return values, which, counts


@operator("ExpandDims", domain=MICROSOFT)
def expand_dims(x: Tensor, axis: Known) -> Tensor:
    return x.unsqueeze(int(axis.item()))


@operator("GatherND", domain=MICROSOFT)
def gather_nd(data: Tensor, indices: Tensor, *, node: NodeContext) -> Any:
    return standard("GatherND", 12)(data, indices)


@operator("Range", domain=MICROSOFT)
def range_(start: Known, limit: Known, delta: Known | None = None) -> Tensor:
    step = 1 if delta is None else delta.item()
    return torch.arange(start.item(), limit.item(), step, dtype=start.dtype)


@operator("CDist", domain=MICROSOFT)
def pairwise_distance(a: Tensor, b: Tensor, *, metric: str = "sqeuclidean", node: NodeContext) -> Tensor:
    """a [rows, width], b [columns, width] -> [rows, columns]."""
    squares = (a.unsqueeze(1) - b.unsqueeze(0)).pow(2).sum(-1)
    if metric not in ("sqeuclidean", "euclidean"):
        raise node.refuse(f"its metric is {metric}", "Euclidean distances and their squares are read.")
    return squares if metric == "sqeuclidean" else squares.sqrt()
