"""Resampling along one axis, as ONNX's Resize defines it: where a result's numbers lie in the input, and their weights.

Positions are an array of numpy where both sizes are known, otherwise a tensor, both of float64 [out].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from compiler.frontends.onnx_model.windows import larger

Array = Any
"""A numpy array or a tensor."""
Count = Any
"""A size: an int, or a SymInt, which torch's stubs leave out."""
LARGEST_DENOMINATOR = 1000
SAFE_FACTOR = 16
"""Up to which float32's 1/n is never so low that n * (1/n) falls below 1."""


@dataclass(frozen=True)
class Axis:
    """One axis that is resized. `scale` is None where sizes are stated instead; `region` is tf_crop_and_resize's."""

    dim: int
    before: Count
    after: Count
    scale: float | None
    region: tuple[float, float] = (0.0, 1.0)

    @property
    def is_known(self) -> bool:
        """Whether both sizes are plain numbers."""
        return isinstance(self.before, int) and isinstance(self.after, int)

    @property
    def is_unchanged(self) -> bool:
        """Whether resizing does nothing for certain."""
        same = bool(statically_known_true(self.before == self.after))
        return same and self.scale in (None, 1.0) and self.region == (0.0, 1.0)

    @property
    def factor(self) -> float | None:
        """The scale, where it is known."""
        if self.scale is not None or not self.is_known:
            return self.scale
        return float(self.after / self.before)

    @property
    def width(self) -> Any:
        """The size of the result before it is rounded down, where it is known."""
        return self.after if self.scale is None or not self.is_known else self.scale * self.before


def scaled_size(size: Count, scale: float) -> Count:
    """size * scale rounded down; a scale that a simple fraction stands behind is that fraction."""
    simple = Fraction(scale).limit_denominator(LARGEST_DENOMINATOR)
    exact = simple if np.float32(float(simple)) == np.float32(scale) else Fraction(scale)
    return size * exact.numerator // exact.denominator


def positions(axis: Axis, transformation: str) -> Array:
    """x_original of every x_resized. Raises ValueError for an unknown transformation."""
    steps: Any = (
        np.arange(axis.after, dtype=np.float64) if axis.is_known else torch.arange(axis.after, dtype=torch.float64)
    )
    before, width, start, end = axis.before, axis.width, *axis.region
    if transformation in ("align_corners", "tf_crop_and_resize"):
        single = axis.is_known and width == 1
        places = steps * 0 if single else steps * (before - 1) / _at_least_one(width - 1)
        if transformation == "align_corners":
            return places
        middle = (end - start) / 2 * (before - 1) if single else 0.0
        return places * (end - start) + middle + start * (before - 1)
    if transformation == "asymmetric":
        return _unscaled(axis, steps)
    centers = _unscaled(axis, steps + 0.5) - 0.5
    if transformation == "half_pixel":
        return centers
    if transformation == "pytorch_half_pixel":
        return centers * 0 - 0.5 if axis.is_known and width == 1 else centers
    if transformation == "half_pixel_symmetric":
        return centers if axis.scale is None else centers + before * (1 - axis.after / (axis.scale * before)) / 2
    raise ValueError(f"coordinate transformation {transformation!r} is not known")


def _at_least_one(width: Count) -> Count:
    return larger(width, 1) if isinstance(width, torch.SymInt) else width


def _unscaled(axis: Axis, steps: Array) -> Array:
    if axis.scale is not None:
        return steps / axis.scale
    return steps * axis.before / axis.after if not axis.is_known else steps / (axis.after / axis.before)


def nearest_indices(places: Array, size: Count, rounding: str) -> Array:
    """The index of the number nearest to each position. Raises ValueError for an unknown rounding."""
    library: Any = torch if isinstance(places, Tensor) else np
    rules: dict[str, Callable[[], Array]] = {
        "round_prefer_floor": lambda: library.ceil(places - 0.5),
        "round_prefer_ceil": lambda: library.floor(places + 0.5),
        "floor": lambda: library.floor(places),
        "ceil": lambda: library.ceil(places),
    }
    if rounding not in rules:
        raise ValueError(f"nearest mode {rounding!r} is not known")
    return _clipped(rules[rounding](), 0, size - 1)


def _clipped(array: Array, low: Count, high: Count) -> Array:
    return array.clamp(low, high) if isinstance(array, Tensor) else array.clip(low, high)


def neighbors(
    axis: Axis, places: Array, mode: str, coefficient: float, antialias: bool, exclude_outside: bool
) -> tuple[Array, Array]:
    """Indices and weights [out, count] of the numbers that make up each number of the result.

    `mode` is linear or cubic. Raises ValueError for antialiasing at a scale that is not known.
    """
    library: Any = torch if isinstance(places, Tensor) else np
    if antialias and axis.factor is None:
        raise ValueError("antialiasing needs sizes that are known")
    shrinking = min(axis.factor or 1.0, 1.0) if antialias else 1.0
    reach = 1 if mode == "linear" else 2
    count = -2 * math.floor(-reach / shrinking)
    indices = library.floor(places)[:, None] + (library.arange(count) + 1 - count // 2)
    distances = abs(indices - places[:, None]) * shrinking
    weights = _clipped(1 - distances, 0, 1) if mode == "linear" else _cubic(library, distances, coefficient)
    if exclude_outside:
        weights = library.where((indices >= 0) & (indices <= axis.before - 1), weights, 0.0)
    if antialias or exclude_outside:
        weights = weights / weights.sum(-1)[:, None]
    return _clipped(indices, 0, axis.before - 1), weights


def _cubic(library: Any, d: Array, a: float) -> Array:
    """Keys 1981, eq. 4, of distances d >= 0."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return library.where(d <= 1, near, library.where(d < 2, far, 0.0))


def is_atens_nearest(axis: Axis, transformation: str, rounding: str) -> bool:
    """Whether aten's upsample_nearest picks the same numbers: floor(x / scale) in float32."""
    if axis.is_known:
        ratio = np.float32(1 / axis.scale if axis.scale is not None else axis.before / max(axis.after, 1))
        theirs = np.floor(np.arange(axis.after, dtype=np.float32) * ratio).clip(0, axis.before - 1)
        return bool((theirs == nearest_indices(positions(axis, transformation), axis.before, rounding)).all())
    scale = axis.scale
    if (transformation, rounding) == ("asymmetric", "floor"):
        return (
            scale is None or (scale <= SAFE_FACTOR and scale.is_integer()) or (scale < 1 and (1 / scale).is_integer())
        )
    whole = scale is not None and scale.is_integer() and 1 <= scale <= SAFE_FACTOR
    return whole and transformation in HALF_PIXEL and rounding in ("round_prefer_floor", "round_prefer_ceil")


HALF_PIXEL = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
