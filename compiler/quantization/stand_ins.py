"""From a layer's float weight to the module that stands in for it: grid, rounding, packing, and what to call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from compiler.calibration import ActivationStatistics
from compiler.quantization.block_rounding import TABLE_ROWS_AT_ONCE, Form, compensated_blocks, nearest_blocks
from compiler.quantization.compensation import compensated_codes, damped
from compiler.quantization.kept_grid import kept_grid, kept_in_bytes
from compiler.quantization.modules import (
    BlockQuantizedLinear,
    DynamicQuantizedLinear,
    PackedBlocks,
    QuantizedConvolution,
    QuantizedEmbedding,
    RowScaledLinear,
)
from compiler.quantization.scales import Clip, Grid, asymmetric_grid, lopsided_grid, symmetric_grid
from compiler.weight_readers import unusable_weight

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.sites import Site

Rounding = Literal["compensated", "nearest"]
ScaleBits = Literal[16, 8]

SMALLEST_SITE = 1024
"""Weights below which a site costs more in kernel calls than it saves in bytes."""
SMALLEST_BLOCK = 16
TOLERATED_NOISE = 1.2e-4
"""Error power over signal power that rounding the inputs with one scale may add to a layer's output."""
WORTHWHILE_GAIN = 4.0
"""How many times less noise scales for rows must add."""
TABLE_BLOCK_AT_4_BITS = 32


def unfit(site: Site, program: Program, sharing: Sequence[str]) -> str | None:
    """Why no setting would quantize this site, whose weight the sites called `sharing` read too."""
    if site.kind == "quantized":
        return "it is quantized already: run dequantize first"
    weight = program.weight(site.bindings["weight"])
    if weight.is_floating_point() and weight.numel() < SMALLEST_SITE:
        return f"{weight.numel()} weights are too few to be worth it"
    return unusable_weight(program, site, shared=bool(sharing))


def said_of_rounding(rounding: Rounding, layer: LinearWeights) -> str:
    """What to add to a note on a layer whose rounding could not be what was asked for."""
    if rounding == "compensated" and layer.statistics is None:
        return ", rounded to nearest for want of calibration data"
    return ""


@dataclass(frozen=True)
class LinearWeights:
    """A linear layer as its site binds it: weight [out, in] in float32, bias [out] or none, and what flows in."""

    weight: Tensor
    bias: Tensor | None
    statistics: ActivationStatistics | None


def linear_weights(site: Site, program: Program, statistics: ActivationStatistics | None) -> LinearWeights:
    """What a linear site binds."""
    weight = program.weight(site.bindings["weight"]).detach().float()
    bias = site.bindings["bias"]
    return LinearWeights(
        weight.T.contiguous() if site.bindings["weight_transposed"] else weight,
        None if bias is None else program.weight(bias),
        statistics,
    )


@dataclass(frozen=True)
class BlockForm:
    """How weights are stored in blocks: `symmetric` None means zero points below 8 bits only. With `keep_grid`, weights
    that lie on a grid of so many bits already keep that, whatever the rest says but `scale_bits`: 16, or 8 beside a
    number a row.
    """

    bits: int
    block_size: int
    clip: Clip
    symmetric: bool | None = None
    keep_grid: bool = False
    scale_bits: ScaleBits = 16

    @property
    def zero_points(self) -> bool:
        """Whether each block has a zero point; without one it is 2 ** (bits - 1)."""
        return self.bits < 8 if self.symmetric is None else not self.symmetric

    def grid(self, blocks: Tensor, importance: Tensor | None = None) -> Grid:
        """Unsigned codes for blocks [out, blocks, block_size]; importance [blocks, block_size] weights the errors."""
        make = asymmetric_grid if self.zero_points else lopsided_grid
        return self.stored(make(blocks, self.bits, self.clip, importance))

    def stored(self, grid: Grid) -> Grid:
        """With scales as files hold them."""
        return grid.in_bytes() if self.scale_bits == 8 else grid.in_half()

    def refits(self) -> bool:
        """Scales may be any numbers."""
        return True

    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        """The codes [out, blocks, block_size] on their grid, as kernels read them."""
        return PackedBlocks.of(codes, grid, self.bits, zero_points=self.zero_points)


def dynamic_int8_linear(layer: LinearWeights, clip: Clip, rounding: Rounding) -> DynamicQuantizedLinear:
    """int8 weights with one scale an output; the inputs are quantized at run time."""
    codes, grid = int8_codes(layer, clip, rounding)
    return DynamicQuantizedLinear(codes, grid, layer.bias)


def int8_codes(layer: LinearWeights, clip: Clip, rounding: Rounding) -> tuple[Tensor, Grid]:
    """Codes [out, in] with one scale an output, for products whose inputs are rounded to 8 bits too."""
    grid = symmetric_grid(layer.weight, 8, clip)
    codes = grid.codes(layer.weight)
    if rounding == "compensated" and layer.statistics is not None:
        known = layer.statistics
        firm = damped(known.second_moment, known.row_count, known.rounding_noise())
        codes = compensated_codes(layer.weight, grid, firm)
    return codes, grid


def row_scaled_int8_linear(layer: LinearWeights, clip: Clip, rounding: Rounding) -> RowScaledLinear:
    """int8 weights with one scale an output; every row of the inputs is quantized at a scale of its own."""
    return RowScaledLinear(dynamic_int8_linear(layer, clip, rounding))


def wants_row_scales(layer: LinearWeights) -> bool:
    """Whether one scale for the whole input costs too much accuracy, and a scale a row costs much less."""
    known = layer.statistics
    if known is None or known.rounding_noise() < WORTHWHILE_GAIN * known.rounding_noise_by_row:
        return False
    return known.noise_ratio(layer.weight, known.rounding_noise()) > TOLERATED_NOISE


def block_linear(layer: LinearWeights, form: BlockForm, rounding: Rounding) -> BlockQuantizedLinear:
    """Weight-only codes in blocks of inputs. Inputs are padded up to a whole block."""
    kept = kept_grid(layer.weight, form.bits) if form.keep_grid else None
    if kept is not None and form.scale_bits == 8:
        kept = kept_in_bytes(layer.weight, kept)
    packed = rounded_blocks(layer, form, rounding) if kept is None else kept
    return BlockQuantizedLinear(packed, layer.bias, exact=kept is not None)


def rounded_blocks(layer: LinearWeights, form: Form, rounding: Rounding) -> PackedBlocks:
    """The weight of a layer in a form; without statistics of its inputs to the nearest codes."""
    if rounding == "nearest" or layer.statistics is None:
        return nearest_blocks(layer.weight, form)
    return compensated_blocks(layer.weight, form, layer.statistics)


def int8_convolution(
    weight: Tensor, bias: Tensor | None, settings: Mapping[str, Any], clip: Clip
) -> QuantizedConvolution:
    """Weight-only int8 with a scale for each output channel; weight [out, in, *kernel]."""
    rows = weight.detach().float().flatten(1)
    grid = symmetric_grid(rows, 8, clip)
    return QuantizedConvolution(grid.codes(rows).reshape(weight.shape), grid, bias, settings)


def quantized_table(
    table: Tensor, bits: int, clip: Clip, dtype: torch.dtype, block_size: int | None = None, scale_bits: ScaleBits = 16
) -> QuantizedEmbedding:
    """A table [vocabulary, width] in few bits: one scale a row, at four bits one a block of `block_size`."""
    form = BlockForm(bits, block_size or TABLE_BLOCK_AT_4_BITS, clip, True, scale_bits=scale_bits if bits == 4 else 16)
    width = table.shape[1]
    block_size = (block_size or TABLE_BLOCK_AT_4_BITS) if bits == 4 else block_at_least(width)
    per_scale = min(block_size, width)
    codes, scales = [], []
    for part in torch.split(table, TABLE_ROWS_AT_ONCE):
        padded = torch.nn.functional.pad(part.float(), (0, -width % per_scale))
        blocks = padded.reshape(len(part), -1, per_scale)  # [rows, blocks, per_scale]
        grid = form.grid(blocks)
        codes.append(grid.codes(blocks).flatten(1)[:, :width].to(torch.uint8))
        scales.append(grid.scale[..., 0])  # [rows, blocks]
    return QuantizedEmbedding(torch.cat(codes), torch.cat(scales), bits, block_size, dtype)


def block_that_divides(width: int, largest: int) -> int | None:
    """The largest block size up to `largest` that kernels know and that fills rows of `width`; None where none does."""
    sizes = [largest >> shift for shift in range(largest.bit_length()) if largest >> shift >= SMALLEST_BLOCK]
    return next((size for size in sizes if width % size == 0), None)


def block_at_least(width: int) -> int:
    """The smallest block size that kernels know and that reaches `width`."""
    return max(SMALLEST_BLOCK, 1 << (width - 1).bit_length())
