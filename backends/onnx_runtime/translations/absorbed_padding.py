"""Padding that stands before a convolution or a pool as the operator's own: ONNX takes other widths at both ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from compiler.backends.onnx_runtime.graph_writer import known_size
from compiler.backends.onnx_runtime.translations import arguments, operator_name

PADS = ("aten.pad.default", "aten.constant_pad_nd.default")


def absorbed_padding(
    x: fx.Node, fill: float, dims: int, kernel: Sequence[int] | None = None
) -> tuple[fx.Node, list[int], list[int]]:
    """What is padded, and the widths before and after each spatial dim; `x` itself and zeros where nothing fits.

    Fits: constant padding by `fill`, of spatial dims alone, by known widths, smaller than the `kernel` of a pool.
    """
    none = x, [0] * dims, [0] * dims
    if operator_name(x) not in PADS:
        return none
    source, widths, *rest = arguments(x)
    mode, value = rest if len(rest) == 2 else ("constant", rest[0])
    sizes = [known_size(width) for width in widths]
    if mode != "constant" or (value or 0.0) != fill or len(sizes) > 2 * dims:
        return none
    before, after = _per_dim(sizes[::2], dims), _per_dim(sizes[1::2], dims)
    held = [width for width in (*before, *after) if width is not None]
    fits = len(held) == 2 * dims and min(held) >= 0
    if kernel is not None:
        fits = fits and all(width < size for width, size in zip(held, [*kernel, *kernel], strict=True))
    return (source, held[:dims], held[dims:]) if fits else none


def _per_dim(widths: Sequence[Any], dims: int) -> list[int | None]:
    """torch names the last dim first and leaves out the first ones."""
    return [*[0] * (dims - len(widths)), *reversed(widths)]
