"""Scales for input channels by how large the inputs are: large inputs get weights on a finer grid.

Source: Lin et al. 2023, arXiv:2306.00978, eq. 5: s = magnitude ** alpha, alpha by search over 0 to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.quantization.stand_ins import BlockForm

ALPHAS = tuple(step / 20 for step in range(1, 21))
WORTHWHILE = 0.95
"""Scaling must leave at most this part of the error to be worth changed weights."""
FLOOR = 1e-4
"""Parts of the largest magnitude below which a channel counts as silent."""


def salience_scales(second_moment: Tensor, weight: Tensor, form: BlockForm) -> Tensor | str:
    """Scales [in] for inputs of this second moment [in, in] and stacked weights [out, in], or why there are none."""
    power = second_moment.diagonal()
    if not bool(torch.isfinite(power).all()) or not bool(torch.isfinite(weight).all()):
        return "its input or its weight is not finite"
    if float(power.max()) == 0.0:
        return "its input is zero"
    magnitude = power.sqrt().clamp(min=FLOOR * float(power.max().sqrt()))
    before = output_error(second_moment, weight, torch.ones_like(magnitude), form)
    candidates = [_centred(magnitude**alpha) for alpha in ALPHAS]
    errors = [output_error(second_moment, weight, scales, form) for scales in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    if not errors[best] <= WORTHWHILE * before:
        return f"scaling would leave {errors[best] / max(before, 1e-30):.0%} of the rounding error"
    return candidates[best]


def output_error(second_moment: Tensor, weight: Tensor, scales: Tensor, form: BlockForm) -> float:
    """The mean squared error of the outputs, summed, once weight * scales is rounded to the nearest codes of `form`."""
    scaled = weight * scales
    blocks = torch.nn.functional.pad(scaled, (0, -scaled.shape[1] % form.block_size))
    blocks = blocks.reshape(len(blocks), -1, form.block_size)
    grid = form.grid(blocks)
    rounded = grid.values(grid.codes(blocks)).flatten(1)[:, : scaled.shape[1]]
    error = (rounded - scaled) / scales
    return float(((error @ second_moment) * error).sum())


def _centred(scales: Tensor) -> Tensor:
    """With the geometric mean of the extremes 1, so that magnitudes stay in the range of the dtype."""
    return scales / (scales.max() * scales.min()).sqrt()
