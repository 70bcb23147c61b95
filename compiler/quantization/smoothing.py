"""How far to smooth the input of linear layers: the scale of SmoothQuant, with alpha by the error it leaves.

Rounding x / s to 8 bits with one scale a sample adds noise of variance v(s) to every feature; rounding row i of W * s
to 8 bits adds noise of variance step_i(s) ** 2 / 12 to every weight. To first order the output's squared error is

    v(s) * sum_j s_j**2 * sum_i W_ij**2   +   sum_i step_i(s)**2 / 12 * sum_j E[x_j**2] / s_j**2

Source: Xiao et al. 2022, arXiv:2211.10438, eq. 4 for s; the error is that of uniform rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.calibration import ActivationStatistics

ALPHAS = tuple(step / 20 for step in range(6, 20))
WORTHWHILE = 0.8
"""Smoothing must leave at most this part of the error to be worth changed weights."""
WORTHWHILE_PRODUCT = 0.5
"""The same where it takes a product in the graph, which costs time on every run."""
FLOOR = 1e-5
"""Parts of the largest magnitude below which a channel counts as silent: it must not get an extreme scale."""


def smoothing_scales(
    statistics: ActivationStatistics, weight: Tensor, alpha: float | None, worthwhile: float = WORTHWHILE
) -> tuple[Tensor | None, str | None]:
    """Scales [in] for an input and the stacked weights [out, in] that read it, or None and the reason.

    With `alpha` None the best of `ALPHAS` is taken, and only where it leaves at most `worthwhile` of the error.
    """
    magnitude = statistics.typical_magnitude
    if not bool(torch.isfinite(magnitude).all()) or not bool(torch.isfinite(weight).all()):
        return None, "its input or its weight is not finite"
    if float(magnitude.max()) == 0.0 or float(weight.abs().max()) == 0.0:
        return None, "its input or its weight is zero"
    if alpha is not None:
        return _scales(magnitude, weight, alpha), None
    candidates = [_scales(magnitude, weight, one) for one in ALPHAS]
    errors = [expected_error(statistics, weight, scales) for scales in candidates]
    before = expected_error(statistics, weight, torch.ones_like(magnitude))
    best = min(range(len(errors)), key=errors.__getitem__)
    if errors[best] > worthwhile * before:
        return None, f"smoothing would leave {errors[best] / before:.0%} of the rounding error"
    return candidates[best], None


def expected_error(statistics: ActivationStatistics, weight: Tensor, scales: Tensor) -> float:
    """The squared error of the outputs, summed, that 8-bit rounding leads one to expect with these scales."""
    smoothed = weight * scales
    from_inputs = statistics.rounding_noise(scales) * float(smoothed.square().sum())
    step = smoothed.abs().amax(1) / 127  # [out]
    power = (statistics.second_moment.diagonal() / scales.square()).sum()
    return from_inputs + float(step.square().sum() / 12 * power)


def _scales(magnitude: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Eq. 4, scaled to a geometric mean of 1 so that magnitudes stay in the range of the dtype."""
    column = weight.abs().amax(0)
    floor_x, floor_w = FLOOR * float(magnitude.max()), FLOOR * float(column.max())
    scales = magnitude.clamp(min=floor_x) ** alpha / column.clamp(min=floor_w) ** (1 - alpha)
    return scales / scales.log().mean().exp()
