"""Ranges of activations against plain loops and against ONNX Runtime's own calibrators."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from onnxruntime.quantization.calibrate import HistogramCollector
from torch import Tensor

from compiler.quantization.activation_ranges import (
    ActivationRange,
    activation_range,
    least_divergence,
    window_divergence,
)


def heavy_tailed(seed: int, count: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    values[:20] *= 30
    return values + 0.3


def one_sided(seed: int) -> Tensor:
    return torch.nn.functional.gelu(2 * heavy_tailed(seed))


def collector(method: str, bins: int, quantized_bins: int) -> HistogramCollector:
    return HistogramCollector(method, False, bins, quantized_bins, 99.99, "same")


def theirs(method: str, values: Tensor, bins: int, quantized_bins: int = 128) -> tuple[float, float]:
    """The range that ONNX Runtime's calibrator finds."""
    with contextlib.redirect_stdout(io.StringIO()):
        made = collector(method, bins, quantized_bins)
        made.collect({"x": values.numpy()})
        low, high = made.compute_collection_result()["x"][:2]
    return float(low), float(high)


@pytest.mark.parametrize("make", [heavy_tailed, one_sided])
def test_all_that_was_seen(make: object) -> None:
    values = make(0)
    found = activation_range(values, "minmax")
    assert (found.low, found.high) == (float(values.min()), float(values.max()))


def test_zero_is_always_a_code() -> None:
    for values in (torch.rand(50) + 3, -torch.rand(50) - 3, torch.zeros(5)):
        for method in ("minmax", "percentile", "mse", "entropy"):
            found = activation_range(values, method)
            assert found.low <= 0 <= found.high
            assert 0 <= found.zero_point <= 255
            assert math.isfinite(found.scale)
            assert found.scale > 0


@pytest.mark.parametrize("seed", range(3))
def test_percentiles_are_those_of_onnx_runtime(seed: int) -> None:
    """Theirs are edges of bins, found by a sum of rounded parts: within a bin of ours, or of a neighbour in order."""
    values, bins = heavy_tailed(seed, 100_000), 20_001
    width = 2 * float(values.abs().max()) / bins
    low, high = theirs("percentile", values, bins)
    found, order = activation_range(values, "percentile"), values.sort().values
    assert (found.low, found.high) == (float(order[5]), float(order[-6]))
    assert float(order[4]) - width <= low <= float(order[6]) + width
    assert float(order[-7]) - width <= high <= float(order[-5]) + width


def plain_divergence(counts: list[float], window_bins: int) -> tuple[int, int]:
    """Migacz 2017, slides 20 to 22, with windows around the middle, in plain loops."""
    middle, best, least = len(counts) // 2, (0, len(counts)), math.inf
    for reach in range(window_bins // 2, middle + 1):
        start, stop = middle - reach, min(middle + reach + 1, len(counts))
        inside = counts[start:stop]
        p = list(inside)
        p[0] += sum(counts[:start])
        p[-1] += sum(counts[stop:])
        width, q = len(inside) // window_bins, [0.0] * len(inside)
        for window in range(window_bins):
            last = window == window_bins - 1
            places = range(window * width, len(inside) if last else (window + 1) * width)
            occupied = [place for place in places if p[place] != 0]
            for place in occupied:
                q[place] = sum(inside[one] for one in places) / len(occupied)
        divergence = math.inf
        if any(p) and any(q):
            divergence = 0.0
            smooth = []
            for row in (p, q):
                empty = sum(value == 0 for value in row)
                taken = 1e-4 * empty / (len(row) - empty)
                filled = [1e-4 if value == 0 else max(value - taken, 1e-4) for value in row]
                smooth.append([value / sum(filled) for value in filled])
            divergence = sum(a * math.log(a / b) for a, b in zip(*smooth, strict=True))
        if divergence < least:
            least, best = divergence, (start, stop)
    return best


@pytest.mark.parametrize("seed", range(3))
def test_the_window_of_least_divergence_is_that_of_a_plain_loop(seed: int) -> None:
    values = heavy_tailed(seed, 3000).numpy()
    furthest = float(np.abs(values).max())
    counts, _ = np.histogram(values, 101, range=(-furthest, furthest))
    assert least_divergence(counts, 16) == plain_divergence(counts.tolist(), 16)


@pytest.mark.parametrize("seed", range(2))
def test_the_window_of_onnx_runtime_diverges_hardly_less(seed: int) -> None:
    """Theirs drops fractions of counts, and what is left over behind the merged bins; minima of divergence are flat."""
    values, bins, merged = heavy_tailed(seed, 200_000), 513, 64
    low, high = theirs("entropy", values, bins, merged)
    furthest = float(values.abs().max())
    counts, edges = np.histogram(values.numpy(), bins, range=(-furthest, furthest))
    start, stop = least_divergence(counts, merged)
    found = (int(np.abs(edges - low).argmin()), int(np.abs(edges - high).argmin()))
    ours = window_divergence(counts, (start, stop), merged)
    assert ours <= window_divergence(counts, found, merged) < 1.1 * ours + 1e-3
    assert abs(edges[stop] / high - 1) < 0.25


def squared_error(values: Tensor, of: ActivationRange) -> float:
    numbers = values.double().numpy()
    codes = np.clip(np.rint(numbers / of.scale) + of.zero_point, 0, 255)
    return float((((codes - of.zero_point) * of.scale - numbers) ** 2).sum())


@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_the_range_of_least_error_has_little_more_than_any_part_of_the_whole(shift: float) -> None:
    """One number far out is clipped where that costs less than coarser steps for all the others."""
    values = torch.randn(400_000, generator=torch.Generator().manual_seed(1)) + shift
    values[0] = 8.0 + 2 * shift
    whole = activation_range(values, "minmax")
    found = squared_error(values, activation_range(values, "mse"))
    parts = [ActivationRange(whole.low * part / 100, whole.high * part / 100) for part in range(4, 101, 4)]
    assert found < 1.02 * min(squared_error(values, part) for part in parts)
    assert found < 0.95 * squared_error(values, whole)
