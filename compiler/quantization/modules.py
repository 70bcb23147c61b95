"""The modules that stand in for layers once their weights are codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.ops.dequantize_linear import dequantize_linear
from compiler.ops.dynamic_quantized_linear import dynamic_quantized_linear
from compiler.ops.quantized_embedding import quantized_embedding
from compiler.ops.quantized_linear import quantized_linear
from compiler.quantization.block_product import BlockProduct
from compiler.quantization.byte_scales import exact_bytes
from compiler.quantization.packing import pack_codes, pack_zero_points, unpack_codes, unpack_zero_points
from compiler.quantization.scales import Grid

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
SMALLEST_MAGNITUDE = 1e-6
"""Rows below it are taken as zeros."""


class DynamicQuantizedLinear(nn.Module):
    """int8 weights with a scale for each output, activations quantized when they come in."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, grid: Grid, bias: Tensor | None) -> None:
        """codes [out, in] on a symmetric 8-bit grid with scale [out, 1]."""
        super().__init__()
        self.register_buffer("weight", codes.T.to(torch.int8).contiguous())
        self.register_buffer("scales", grid.scale.flatten().float().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        y: Tensor = dynamic_quantized_linear(x, self.weight, self.scales, self.bias)
        return y


class RowScaledLinear(nn.Module):
    """A DynamicQuantizedLinear whose input rows are brought to one magnitude first, and back afterwards.

    y = (x / t) @ w * t + bias with t [..., 1] the largest |x| of a row: one scale for the tensor then serves every row.
    """

    bias: Tensor | None

    def __init__(self, inner: DynamicQuantizedLinear) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("bias", inner.bias)
        inner.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]. A row of zeros gives the bias."""
        magnitude = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_MAGNITUDE)  # [..., 1]
        y: Tensor = self.inner(x / magnitude) * magnitude
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class PackedBlocks:
    """A weight [out, in] in few bits: weight [out, blocks, block_size * bits / 8] (uint8) or as its format stores it,
    scales [out, blocks]. `table` is what codes stand for, where a format looks that up.
    """

    weight: Tensor
    scales: Tensor
    zero_points: Tensor | None
    bits: int
    block_size: int
    table: Tensor | None = None

    @classmethod
    def of(cls, codes: Tensor, grid: Grid, bits: int, *, zero_points: bool) -> PackedBlocks:
        """codes [out, blocks, block_size] on an unsigned grid with scale and zero [out, blocks, 1]."""
        packed = pack_zero_points(grid.zero[..., 0].to(torch.int32), bits) if zero_points else None
        scales = grid.scale[..., 0].float().contiguous()
        return cls(pack_codes(codes, bits).contiguous(), scales, packed, bits, codes.shape[-1])

    @classmethod
    def in_half(cls, weight: Tensor, scales: Tensor, bits: int, table: Tensor | None = None) -> PackedBlocks:
        """A weight as it is stored, with scales [out, blocks] in float16 where that holds them."""
        halves = scales.half()
        held = halves if torch.equal(halves.float(), scales) else scales
        return cls(weight, held.contiguous(), None, bits, weight.shape[-1] * 8 // bits, table)

    @classmethod
    def joined(cls, parts: Sequence[PackedBlocks]) -> PackedBlocks:
        """The rows of all parts, which have one form, in order."""
        first = parts[0]
        points = [part.zero_points for part in parts if part.zero_points is not None]
        weight, scales = torch.cat([part.weight for part in parts]), torch.cat([part.scales for part in parts])
        return cls(weight, scales, torch.cat(points) if points else None, first.bits, first.block_size, first.table)


class ScaledBlocks(nn.Module):
    """A linear layer of steps times scales, [out, blocks, block_size] and [out, blocks].

    Between `learn_scales` and `settle`, each scale is multiplied with one plus its gain, a parameter.
    """

    weight: Tensor
    scales: Tensor
    zero_points: Tensor | None
    bias: Tensor | None
    gains: nn.Parameter | None
    steps: Tensor | None

    def __init__(self, packed: PackedBlocks, bias: Tensor | None, *, exact: bool = False) -> None:
        """The buffers are `packed`'s own tensors, so that several modules store them once. `exact` says that nothing
        was rounded.
        """
        super().__init__()
        self.exact = exact
        self.gains = self.steps = None
        self.bits, self.block_size = packed.bits, packed.block_size
        self.register_buffer("weight", packed.weight)
        self.register_buffer("scales", packed.scales)
        self.register_buffer("zero_points", packed.zero_points)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        if self.gains is None:
            return self.product(x)
        scales = self.float_scales() * (1 + self.gains)
        y: Tensor = BlockProduct.apply(x, self.steps, scales)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out] while nothing is learned."""
        raise NotImplementedError

    def float_scales(self) -> Tensor:
        """The scales that the steps take: float32 [out, blocks]."""
        return self.scales

    def learn_scales(self) -> None:
        """Give every scale a gain that can be trained."""
        raise NotImplementedError

    def settle(self) -> None:
        """Put the gains into the scales, stored as they were, and be as before."""
        if self.gains is not None:
            learned = (self.scales.float() * (1 + self.gains.detach()))[..., None]
            grid = Grid(learned, learned, 0, 0)
            held = grid.in_half() if exact_bytes(self.scales) is None else grid.in_bytes()
            self.scales = held.scale[..., 0].to(self.scales.dtype).contiguous()
        self.gains = self.steps = None


class BlockQuantizedLinear(ScaledBlocks):
    """Weights of 2, 4 or 8 bits with a scale, and maybe a zero point, for each block of inputs."""

    def product(self, x: Tensor) -> Tensor:
        """One product with the codes as they are."""
        y: Tensor
        y = quantized_linear(x, self.weight, self.scales, self.zero_points, self.bias, self.bits, self.block_size)
        return y

    def learn_scales(self) -> None:
        """Give every scale a gain that can be trained."""
        self.gains = nn.Parameter(torch.zeros_like(self.scales))
        codes = unpack_codes(self.weight, self.bits).to(torch.int16)  # [out, blocks, block_size]
        middle = torch.full_like(self.scales, 2 ** (self.bits - 1), dtype=torch.int16)
        if self.zero_points is not None:
            middle = unpack_zero_points(self.zero_points, self.bits, self.scales.shape[1]).to(torch.int16)
        steps = codes - middle[..., None]
        self.steps = steps if self.bits == 8 else steps.to(torch.int8)


class SharedTableRows(nn.Module):
    """The rows of a table that is the weight of a linear layer as well."""

    weight: Tensor
    scales: Tensor
    zero_points: Tensor | None

    def __init__(self, packed: PackedBlocks, dtype: torch.dtype) -> None:
        """packed.weight [vocabulary, blocks, block_bytes] has no padding; rows come back as dtype."""
        super().__init__()
        self.bits, self.block_size, self.dtype = packed.bits, packed.block_size, dtype
        self.register_buffer("weight", packed.weight)
        self.register_buffer("scales", packed.scales)
        self.register_buffer("zero_points", packed.zero_points)

    def forward(self, indices: Tensor) -> Tensor:
        """indices [...] to rows [..., width]."""
        table = self.weight.view(self.weight.shape[0], -1)
        rows: Tensor = quantized_embedding(indices, table, self.scales, self.zero_points, self.bits, self.block_size)
        return rows if rows.dtype == self.dtype else rows.to(self.dtype)


class QuantizedConvolution(nn.Module):
    """int8 weights with a scale for each output channel, dequantized on the way into a float convolution."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, grid: Grid, bias: Tensor | None, settings: Mapping[str, Any]) -> None:
        """codes [out, in, *kernel] on a symmetric 8-bit grid with scale [out, 1]; settings as the site binds them."""
        super().__init__()
        self.register_buffer("weight", codes.to(torch.int8).contiguous())
        self.register_buffer("scales", grid.scale.flatten().float().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.convolve: Any = CONVOLUTIONS[settings["dims"]]
        self.settings = {name: settings[name] for name in ("stride", "padding", "dilation", "groups")}

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, *spatial] to [batch, out_channels, *spatial]."""
        weight = dequantize_linear(self.weight, self.scales, None, "int8", 0, 0)
        y: Tensor = self.convolve(x, weight.to(x.dtype), self.bias, **self.settings)
        return y


class QuantizedEmbedding(nn.Module):
    """A table of 4, 6 or 8 bits with a scale for each block of a row."""

    weight: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, bits: int, block_size: int, dtype: torch.dtype) -> None:
        """codes [vocabulary, width] around 2 ** (bits - 1), scales [vocabulary, blocks]; rows come back as dtype."""
        super().__init__()
        self.bits, self.block_size = bits, block_size
        self.register_buffer("weight", pack_codes(codes, bits).contiguous())
        self.register_buffer("scales", scales.to(dtype).contiguous())

    def forward(self, indices: Tensor) -> Tensor:
        """indices [...] to rows [..., width]."""
        rows: Tensor = quantized_embedding(indices, self.weight, self.scales, None, self.bits, self.block_size)
        return rows
