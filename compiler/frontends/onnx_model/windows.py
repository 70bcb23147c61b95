"""Where the windows of a convolution or a pool stand: their size, step and spread, and the padding around the input.

ONNX gives padding as numbers or as a rule (`auto_pad`), torch takes equal widths on both sides. Sizes stay symbolic
where dims are dynamic, and so do the widths that follow from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.known import Size

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Windows:
    """Windows over spatial dims; every list has one number a dim.

    sizes: of the input; kernel, strides, dilations: of a window; starts, ends: widths of the padding; ceil: whether
    windows that reach over the end count, unless they start there.
    """

    sizes: list[Size]
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    starts: list[Size]
    ends: list[Size]
    ceil: bool = False

    @property
    def spans(self) -> list[int]:
        """From the first place of a window to its last."""
        return [(size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]

    @property
    def has_known_padding(self) -> bool:
        """Whether no width depends on a dynamic dim."""
        return all(isinstance(width, int) for width in (*self.starts, *self.ends))

    @property
    def symmetric(self) -> list[int] | None:
        """The padding where it is the same number on both sides, or None."""
        return cast("list[int]", self.starts) if self.has_known_padding and self.starts == self.ends else None

    def exact(self) -> Windows:
        """The same windows with the last padding as wide as they reach, so that rounding down counts them all."""
        if not self.ceil:
            return self
        ends = []
        rows = zip(self.sizes, self.spans, self.strides, self.starts, self.ends, strict=True)
        for size, span, stride, start, end in rows:
            reaching = -((span - size - start - end) // stride)  # ceil((size + start + end - span) / stride)
            starting = -((-size - start) // stride) - 1
            last = smaller(reaching, starting)
            ends.append(last * stride + span - size - start)
        return Windows(self.sizes, self.kernel, self.strides, self.dilations, self.starts, ends)

    def padded(self, x: Tensor, fill: float) -> Tensor:
        """`x` with the padding of these windows; a negative width cuts places off that no window reaches."""
        return with_widths(x, self.starts, self.ends, fill)


def with_widths(x: Tensor, starts: Sequence[Size], ends: Sequence[Size], fill: float) -> Tensor:
    """`x` padded before and after each of its last dims."""
    widths = [width for pair in zip(reversed(starts), reversed(ends), strict=True) for width in pair]
    if all(isinstance(width, int) and width == 0 for width in widths):
        return x
    return F.pad(x, cast("list[int]", widths), value=fill)


def windows(
    x: Tensor,
    kernel: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    ceil_mode: int = 0,
) -> Windows:
    """The windows that ONNX's attributes describe over `x` [batch, channels, *spatial]. Raises ValueError."""
    dims = x.dim() - 2
    sizes: list[Size] = list(x.shape[2:])
    given = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    for name, listed in given.items():
        if listed is not None and len(listed) != dims:
            raise ValueError(f"{name} has {len(listed)} numbers for {dims} spatial dims")
    if not 1 <= dims <= 3:
        raise ValueError(f"there are {dims} spatial dims, and kernels for 1, 2 and 3")
    numbers = [int(size) for size in kernel]
    steps, spread = list(strides or [1] * dims), list(dilations or [1] * dims)
    if min(*numbers, *steps, *spread) < 1:
        raise ValueError("kernel_shape, strides and dilations are positive")
    starts, ends = _padding(sizes, numbers, auto_pad, pads, steps, spread)
    ceil = bool(ceil_mode) and auto_pad == "NOTSET"
    return Windows(sizes, numbers, steps, spread, starts, ends, ceil)


def _padding(
    sizes: Sequence[Size],
    kernel: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[Size], list[Size]]:
    dims = len(sizes)
    if auto_pad not in AUTO_PADS:
        raise ValueError(f"auto_pad is {auto_pad!r}, not one of {', '.join(AUTO_PADS)}")
    if auto_pad == "VALID":
        return [0] * dims, [0] * dims
    if auto_pad == "NOTSET":
        listed = list(pads or [0] * 2 * dims)
        if len(listed) != 2 * dims:
            raise ValueError(f"pads has {len(listed)} numbers for {dims} spatial dims")
        return list(listed[:dims]), list(listed[dims:])
    totals = [
        same_padding(size, (width - 1) * dilation + 1, stride)
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    return split_padding(totals, auto_pad)


def same_padding(size: Size, span: int, stride: int) -> Size:
    """How much padding gives ceil(size / stride) windows."""
    if stride == 1:
        return span - 1
    if span == 1:
        return 0
    total = (size + stride - 1) // stride * stride - stride + span - size
    return total if span >= stride else larger(total, 0)


def split_padding(totals: Sequence[Size], auto_pad: str) -> tuple[list[Size], list[Size]]:
    """Padding before and after: an odd place goes to the end for SAME_UPPER, to the start otherwise."""
    halves = [total // 2 for total in totals]
    rest = [total - half for total, half in zip(totals, halves, strict=True)]
    return (halves, rest) if auto_pad == "SAME_UPPER" else (rest, halves)


def larger(left: Size, right: Size) -> Size:
    """The larger size, without asking which it is."""
    return cast("Size", torch.sym_max(left, right))  # type: ignore[no-untyped-call]


def smaller(left: Size, right: Size) -> Size:
    """The smaller size, without asking which it is."""
    return cast("Size", torch.sym_min(left, right))  # type: ignore[no-untyped-call]
