"""From what flows into a layer on calibration data to the range that its 8-bit codes cover, by the four usual methods.

    minmax      all that was seen
    percentile  all but the 0.01 % furthest out, half of it on either side
    mse         the part of the range whose rounding and clipping leave the least squared error
    entropy     the window whose codes keep most of the distribution: the least divergence from it

Sources: Migacz 2017, 8-bit Inference with TensorRT, GTC S7310 (entropy); Banner et al. 2019, arXiv:1810.05723 (mse);
Wu et al. 2020, arXiv:2004.09602, section 3.3 (all of them side by side).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

Calibration = Literal["minmax", "percentile", "mse", "entropy"]
KEPT = 0.9999
LARGEST_CODE = 255
HALF_BINS = 2048
"""Bins of a histogram on either side of the one around zero."""
WINDOW_BINS = 256
"""Bins that a window is merged into: as many as there are codes."""
EMPTY = 1e-4
"""Counts that empty bins get of the others, so that a divergence is finite."""
PARTS = tuple(1.0 - 0.02 * step for step in range(46))
SMALLEST_RANGE = 1e-30


@dataclass(frozen=True)
class ActivationRange:
    """The smallest and largest number that codes stand for; zero is one of them."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """One step of 255."""
        return max(self.high - self.low, SMALLEST_RANGE) / LARGEST_CODE

    @property
    def zero_point(self) -> int:
        """The code of zero."""
        return min(max(round(-self.low / self.scale), 0), LARGEST_CODE)


def activation_range(values: Tensor, method: Calibration) -> ActivationRange:
    """The range for `values`, float of any shape, at least one of them. Zero is always in it."""
    numbers = values.detach().float().flatten()
    low, high = float(numbers.min().clamp(max=0)), float(numbers.max().clamp(min=0))
    if method == "percentile":
        low, high = _percentiles(numbers)
    elif method == "mse":
        low, high = _least_error(*_histogram(numbers))
    elif method == "entropy":
        counts, edges = _histogram(numbers)
        start, stop = least_divergence(counts, WINDOW_BINS)
        low, high = max(low, float(edges[start])), min(high, float(edges[stop]))
    return ActivationRange(min(low, 0.0), max(high, 0.0))


def _percentiles(numbers: Tensor) -> tuple[float, float]:
    cut = round(len(numbers) * (1 - KEPT) / 2)
    low, high = numbers.kthvalue(1 + cut).values, numbers.kthvalue(len(numbers) - cut).values
    return float(low), float(high)


def _histogram(numbers: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Counts in an odd number of bins around zero, and their edges."""
    furthest = max(float(numbers.abs().max()), SMALLEST_RANGE)
    return np.histogram(numbers.numpy(), 2 * HALF_BINS + 1, range=(-furthest, furthest))


def _least_error(counts: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """The part of the occupied range, the same on either side, with the least error; bins count as their centres."""
    occupied = np.flatnonzero(counts)
    counts, centres = counts[occupied], (edges[occupied] + edges[occupied + 1]) / 2
    ranges = [ActivationRange(min(centres[0] * part, 0.0), max(centres[-1] * part, 0.0)) for part in PARTS]
    best = min(ranges, key=lambda one: _error(counts, centres, one))
    return best.low, best.high


def _error(counts: np.ndarray, centres: np.ndarray, of: ActivationRange) -> float:
    codes = np.clip(np.round(centres / of.scale) + of.zero_point, 0, LARGEST_CODE)
    return float((counts * ((codes - of.zero_point) * of.scale - centres) ** 2).sum())


def least_divergence(counts: np.ndarray, window_bins: int) -> tuple[int, int]:
    """The window [start, stop) of edges around the middle bin of least divergence (Migacz 2017, slide 20 and 22).

    The reference is the window with what lies outside added to its first and last bin; the candidate are its counts
    without that, merged into `window_bins` and spread evenly over those of their bins that the reference has counts in.
    """
    middle = len(counts) // 2
    reaches = range(window_bins // 2, middle + 1)
    windows = [(middle - reach, min(middle + reach + 1, len(counts))) for reach in reaches]
    return min(windows, key=lambda window: window_divergence(counts, window, window_bins), default=(0, len(counts)))


def window_divergence(counts: np.ndarray, window: tuple[int, int], window_bins: int) -> float:
    """How far what is left of a histogram by the codes of a window is from it."""
    start, stop = window
    inside = counts[start:stop].astype(np.float64)
    reference = inside.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    return _divergence(reference, _merged(inside, reference != 0, window_bins))


def _merged(inside: np.ndarray, occupied: np.ndarray, window_bins: int) -> np.ndarray:
    """Counts after merging and spreading; bins that are left over go to the last of the merged ones."""
    width = len(inside) // window_bins
    starts = np.arange(window_bins) * width
    totals, bins = np.add.reduceat(inside, starts), np.add.reduceat(occupied.astype(np.float64), starts)
    spread = np.divide(totals, bins, out=np.zeros_like(totals), where=bins > 0)
    lengths = np.full(window_bins, width)
    lengths[-1] = len(inside) - starts[-1]
    return np.where(occupied, np.repeat(spread, lengths), 0.0)


def _divergence(reference: np.ndarray, candidate: np.ndarray) -> float:
    """sum p log(p / q) of two rows of counts; infinite where one has none."""
    if not reference.any() or not candidate.any():
        return float("inf")
    p, q = _without_empty(reference), _without_empty(candidate)
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _without_empty(counts: np.ndarray) -> np.ndarray:
    empty = counts == 0
    taken = EMPTY * empty.sum() / (~empty).sum()
    return np.maximum(np.where(empty, EMPTY, counts - taken), EMPTY)
