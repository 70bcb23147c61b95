"""Modules that stand in for layers and hold weights in any format: products, tables, and products of rotated inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compiler.quantization.formats import WeightFormat
from compiler.quantization.modules import CONVOLUTIONS, PackedBlocks, ScaledBlocks
from compiler.quantization.stand_ins import LinearWeights

STEP_TYPES = (torch.int8, torch.int16, torch.float16, torch.float32)
"""Types for steps while scales learn; the first that holds them exactly is taken."""


class FormattedLinear(ScaledBlocks):
    """A linear layer whose weight stands in a format.

    Where the scales of a format are not any number (`learns_rows`), healing trains one gain an output, which is kept as
    `row_scales` beside the weight.
    """

    table: Tensor | None
    row_scales: Tensor | None

    def __init__(self, form: WeightFormat, packed: PackedBlocks, bias: Tensor | None) -> None:
        super().__init__(packed, bias)
        self.form = form
        self.register_buffer("table", packed.table)
        self.register_buffer("row_scales", None)

    def product(self, x: Tensor) -> Tensor:
        """As the format multiplies."""
        if self.row_scales is None:
            return self.form.product(x, self._packed(), self.bias)
        y = self.form.product(x, self._packed(), None) * self.row_scales
        return y if self.bias is None else y + self.bias

    def float_scales(self) -> Tensor:
        """The scales of blocks, and of outputs where there are any."""
        scales = self.form.scales(self._packed())
        return scales if self.row_scales is None else scales * self.row_scales.float()[:, None]

    def learn_scales(self) -> None:
        """Give every scale, or every output, a gain that can be trained."""
        steps = self.form.steps(self._packed())
        self.steps = next(
            narrow for narrow in (steps.to(dtype) for dtype in STEP_TYPES) if torch.equal(narrow.float(), steps)
        )
        scales = self.float_scales()
        self.gains = nn.Parameter(torch.zeros_like(scales[:, :1] if self.form.learns_rows else scales))

    def settle(self) -> None:
        """Put the gains into the scales, or beside them, and be as before."""
        if self.gains is not None and self.form.learns_rows:
            learned = 1 + self.gains.detach()[:, 0]
            self.row_scales = learned if self.row_scales is None else self.row_scales * learned
            self.gains = None
        super().settle()

    def _packed(self) -> PackedBlocks:
        return PackedBlocks(self.weight, self.scales, self.zero_points, self.bits, self.block_size, self.table)


class FormattedTable(nn.Module):
    """A table [vocabulary, width] in a format. Only the rows asked for are unpacked."""

    weight: Tensor
    scales: Tensor
    zero_points: Tensor | None
    table: Tensor | None

    def __init__(self, form: WeightFormat, packed: PackedBlocks, width: int, dtype: torch.dtype) -> None:
        """The buffers are `packed`'s own tensors, so that a product can share them; rows come back as dtype."""
        super().__init__()
        self.form, self.width, self.dtype = form, width, dtype
        self.bits, self.block_size = packed.bits, packed.block_size
        for name in ("weight", "scales", "zero_points", "table"):
            self.register_buffer(name, getattr(packed, name))

    def forward(self, indices: Tensor) -> Tensor:
        """indices [...] to rows [..., width]."""
        packed = PackedBlocks(self.weight, self.scales, self.zero_points, self.bits, self.block_size, self.table)
        rows = self.form.rows(indices, packed, self.width)
        return rows if rows.dtype == self.dtype else rows.to(self.dtype)


class FormattedConvolution(nn.Module):
    """A convolution whose weight stands in a format, a row an output channel, and is unpacked on the way in."""

    weight: Tensor
    scales: Tensor
    zero_points: Tensor | None
    table: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        form: WeightFormat,
        packed: PackedBlocks,
        shape: Sequence[int],
        bias: Tensor | None,
        settings: Mapping[str, Any],
    ) -> None:
        """shape [out, in, *kernel]; settings as the site binds them."""
        super().__init__()
        self.form, self.shape = form, tuple(shape)
        self.bits, self.block_size = packed.bits, packed.block_size
        for name in ("weight", "scales", "zero_points", "table"):
            self.register_buffer(name, getattr(packed, name))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.convolve: Any = CONVOLUTIONS[settings["dims"]]
        self.settings = {name: settings[name] for name in ("stride", "padding", "dilation", "groups")}

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, *spatial] to [batch, out_channels, *spatial]."""
        packed = PackedBlocks(self.weight, self.scales, self.zero_points, self.bits, self.block_size, self.table)
        weight = self.form.weight(packed, math.prod(self.shape[1:])).reshape(self.shape)
        y: Tensor = self.convolve(x, weight.to(x.dtype), self.bias, **self.settings)
        return y


class RotatedInput(nn.Module):
    """y = inner(x @ R), where R is block-diagonal with the orthogonal matrix `rotation` [size, size] in each block.

    `inner` holds W @ R for the weight W of the layer, so that y is that of the layer.
    """

    rotation: Tensor

    def __init__(self, inner: FormattedLinear, rotation: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("rotation", rotation.float().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        y: Tensor = self.inner(rotated_blocks(x, self.rotation))
        return y


def rotated_layer(layer: LinearWeights, rotation: Tensor) -> LinearWeights:
    """The layer as it is behind rotated inputs: its weight W @ R, and the moments R^T H R of those inputs."""
    known = layer.statistics
    if known is not None:
        moment = rotated_blocks(rotated_blocks(known.second_moment, rotation).T, rotation)
        known = replace(known, second_moment=moment.contiguous())
    return LinearWeights(rotated_blocks(layer.weight, rotation).contiguous(), layer.bias, known)


def rotated_blocks(x: Tensor, rotation: Tensor) -> Tensor:
    """x [..., features] with every `size` features in a row multiplied by rotation [size, size]."""
    return (torch.unflatten(x, -1, (-1, rotation.shape[0])) @ rotation.to(x.dtype)).flatten(-2)
