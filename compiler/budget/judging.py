"""What a stand-in at one site is expected to add to the divergence of the outputs, from its errors there.

For an error d in what a site gives: 1/2 sum over outputs o of P_o mean(d_o ** 2), with P_o the mean squared gradient
that comes back to o for labels drawn from the model (compiler.quantization.sensitivity).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from compiler.budget.places import RESIDUAL
from compiler.patterns import has_tensor, same_shape
from compiler.sites import Site
from compiler.sites.convolution import match_convolution

if TYPE_CHECKING:
    from compiler.quantization.calibration_walk import CalibrationWalk

MOST_ROWS = 1024
"""Rows of a site's output that an error is taken over."""
CONVOLVING = ("convolution", "convolution-chain")
"""Kinds of site whose outputs have their channels in dim 1."""


class Judge:
    """Errors in what one site gives, on some rows of calibration data."""

    def __init__(self, walk: CalibrationWalk, site: Site, copy: nn.Module, power: Mapping[fx.Node, Tensor]) -> None:
        """`copy` is the site as it is, `power` the mean squared gradients of outputs by node."""
        data = walk.data
        self._dim = channel_dim(site)
        self._power = power.get(site.output)
        self._blind = not power
        self._rows: list[tuple[tuple[Tensor, ...], Tensor, Tensor | None]] = []
        left = MOST_ROWS
        with torch.no_grad():
            for inputs, batch in zip(walk.inputs(site), data.calibration, strict=True):
                if left <= 0:
                    break
                samples = _samples(inputs, left)
                expected = copy(*samples)[0]
                cut = tuple(one[: len(expected)] if one.dim() else one for one in batch)
                self._rows.append((samples, expected, data.row_mask(cut, expected)))
                left -= expected.numel() // max(1, expected.shape[self._dim])

    @torch.no_grad()
    def cost(self, module: nn.Module) -> float:
        """What `module` in place of the site is expected to add to the divergence of the outputs."""
        total: Tensor | float = 0.0
        count = 0
        for inputs, expected, mask in self._rows:
            squares = (module(*inputs) - expected).double().square().movedim(self._dim, -1)
            rows = squares.flatten(0, -2) if mask is None else squares[mask]
            total = total + rows.sum(0)
            count += len(rows)
        if isinstance(total, float):
            return 0.0
        mean = total / max(count, 1)
        if self._blind:
            return 0.5 * float(mean.sum())
        return 0.0 if self._power is None else 0.5 * float(torch.dot(mean, self._power.double()))


def channel_dim(site: Site) -> int:
    """Where the channels of what a site gives are: of a residual layer, where those of a convolution in it are that
    gives the same shape.
    """
    if site.kind in CONVOLVING:
        return 1
    if site.kind != RESIDUAL:
        return -1
    alike = [node for node in site.nodes if has_tensor(node) and same_shape(node, site.output)]
    return 1 if any(isinstance(match_convolution(node), Site) for node in alike) else -1


def _samples(inputs: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    """The first samples of a batch, as few as have so many rows; all, where inputs do not agree on what a sample is."""
    leading = {len(one) if one.dim() else 0 for one in inputs}
    if len(leading) != 1 or 0 in leading:
        return inputs
    (count,) = leading
    largest = max(one[0].numel() // max(1, one.shape[-1]) if one.dim() > 1 else 1 for one in inputs)
    return tuple(one[: min(count, max(1, -(-rows // max(1, largest))))] for one in inputs)
