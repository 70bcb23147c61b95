"""Layers of int8 weights whose inputs are rounded to codes of a range that calibration found: W8A8, static.

Each is written as its operator behind DequantizeLinear nodes, as in QDQ models; a runtime with a kernel of integers
fuses them to it (Wu et al. 2020, arXiv:2004.09602, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compiler.ops.dequantize_linear import dequantize_linear
from compiler.ops.fake_quantize_linear import fake_quantize_linear
from compiler.quantization.activation_ranges import ActivationRange, Calibration, activation_range
from compiler.quantization.modules import CONVOLUTIONS
from compiler.quantization.scales import Clip, Grid, symmetric_grid
from compiler.quantization.stand_ins import LinearWeights, Rounding, int8_codes

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.sites import Site

MOST_NUMBERS = 2**24
"""Of what flows into a layer that are kept to find a range: bounds the memory."""


class RoundedActivation(nn.Module):
    """x rounded to uint8 codes of one range, and back."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, of: ActivationRange) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(of.scale))
        self.register_buffer("zero_point", torch.tensor(of.zero_point, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """The nearest numbers that codes stand for."""
        rounded: Tensor = fake_quantize_linear(x, self.scale, self.zero_point, "uint8", 0, 0, True)
        return rounded


class StaticQuantizedLinear(nn.Module):
    """int8 weights with a scale for each output, inputs in uint8 codes of one range."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, grid: Grid, bias: Tensor | None, inputs: ActivationRange) -> None:
        """codes [out, in] on a symmetric 8-bit grid with scale [out, 1]."""
        super().__init__()
        self.inputs = RoundedActivation(inputs)
        self.register_buffer("weight", codes.T.to(torch.int8).contiguous())
        self.register_buffer("scales", grid.scale.flatten().float().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        y: Tensor = (self.inputs(x) @ dequantize_linear(self.weight, self.scales, None, "int8", 1, 0)).to(x.dtype)
        return y if self.bias is None else y + self.bias


class StaticQuantizedConvolution(nn.Module):
    """int8 weights with a scale for each output channel, inputs and outputs in uint8 codes of one range each.

    The bias is int32 codes of the product of both scales, as kernels add it up.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    bias_scales: Tensor

    def __init__(
        self,
        codes: Tensor,
        grid: Grid,
        bias: Tensor | None,
        ranges: tuple[ActivationRange, ActivationRange],
        settings: Mapping[str, Any],
    ) -> None:
        """codes [out, in, *kernel] on a symmetric 8-bit grid with scale [out, 1]; settings as the site binds them."""
        super().__init__()
        self.inputs, self.outputs = (RoundedActivation(of) for of in ranges)
        self.register_buffer("weight", codes.to(torch.int8).contiguous())
        self.register_buffer("scales", grid.scale.flatten().float().contiguous())
        self.register_buffer("bias_scales", self.scales * ranges[0].scale)
        held = (
            None if bias is None else torch.round(bias.detach().double() / self.bias_scales).clamp(-(2**31), 2**31 - 1)
        )
        self.register_buffer("bias", None if held is None else held.to(torch.int32))
        self.convolve: Any = CONVOLUTIONS[settings["dims"]]
        self.settings = {name: settings[name] for name in ("stride", "padding", "dilation", "groups")}

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, *spatial] to [batch, out_channels, *spatial]."""
        weight = dequantize_linear(self.weight, self.scales, None, "int8", 0, 0)
        bias = None
        if self.bias is not None:
            bias = dequantize_linear(self.bias, self.bias_scales, None, "int32", 0, 0)
        y: Tensor = self.outputs(self.convolve(self.inputs(x), weight, bias, **self.settings))
        return y.to(x.dtype)


def static_int8_linear(
    layer: LinearWeights, clip: Clip, rounding: Rounding, inputs: ActivationRange
) -> StaticQuantizedLinear:
    """int8 weights with one scale an output, and inputs in codes of one range."""
    codes, grid = int8_codes(layer, clip, rounding)
    return StaticQuantizedLinear(codes, grid, layer.bias, inputs)


def static_int8_convolution(
    site: Site, program: Program, clip: Clip, method: Calibration, inputs: Sequence[Tensor]
) -> StaticQuantizedConvolution:
    """int8 weights with one scale an output channel; `inputs` are what flows in, from which what flows out follows."""
    bias, stored = site.bindings["bias"], program.weight(site.bindings["weight"]).detach()
    held = None if bias is None else program.weight(bias).detach()
    rows = stored.float().flatten(1)
    grid = symmetric_grid(rows, 8, clip)
    settings = {name: site.bindings[name] for name in ("stride", "padding", "dilation", "groups")}
    convolve = CONVOLUTIONS[site.bindings["dims"]]
    with torch.no_grad():
        outputs = [convolve(x, stored, held, **settings) for x in inputs]
    ranges = activation_range(sampled(inputs), method), activation_range(sampled(outputs), method)
    return StaticQuantizedConvolution(grid.codes(rows).reshape(stored.shape), grid, held, ranges, site.bindings)


def sampled(values: Sequence[Tensor]) -> Tensor:
    """The numbers of all tensors in a row; of very many those at even distances, and the extremes."""
    step = -(-sum(one.numel() for one in values) // MOST_NUMBERS)
    flat = [one.detach().float().flatten() for one in values if one.numel()]
    extremes = [torch.stack([one.min(), one.max()]) for one in flat] if step > 1 else []
    return torch.cat([*(one[::step] for one in flat), *extremes])
