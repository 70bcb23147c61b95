"""The element types that ONNX quantizes to, by their ONNX names in lower case, and the torch dtypes that carry them.

Integers of four and two bits travel in int8 or uint8, float4e2m1 as float32 on its grid of 16 numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

INTEGER_RANGES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "uint4": (0, 15),
    "int4": (-8, 7),
    "uint2": (0, 3),
    "int2": (-2, 1),
}
"""Lowest and highest number of each integer type."""

FLOAT8 = {
    "float8e4m3fn": torch.float8_e4m3fn,
    "float8e4m3fnuz": torch.float8_e4m3fnuz,
    "float8e5m2": torch.float8_e5m2,
    "float8e5m2fnuz": torch.float8_e5m2fnuz,
}
FLOAT4 = "float4e2m1"
LARGEST_FLOAT4 = 6.0
LARGEST_ROUNDED_TO_E4M3FN = 464.0

CARRIERS: dict[str, torch.dtype] = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "uint16": torch.uint16,
    "int16": torch.int16,
    "int32": torch.int32,
    "uint4": torch.uint8,
    "int4": torch.int8,
    "uint2": torch.uint8,
    "int2": torch.int8,
    **FLOAT8,
    FLOAT4: torch.float32,
}
"""int32 is only dequantized: it is the type of quantized biases."""


def rounded_to(quotient: Tensor, zero: Tensor | None, to: str, saturate: bool) -> Tensor:
    """A quotient x / scale as the nearest number of element type `to`, halves to even.

    `zero` is added to integers after rounding; floats take none. Integers clip at their range; float8 does so where
    `saturate`, and otherwise overflows to NaN or infinity.
    """
    if to in INTEGER_RANGES:
        whole = torch.round(quotient).float()
        if zero is not None:
            whole = whole + zero.float()
        return whole.clamp_(*INTEGER_RANGES[to]).to(CARRIERS[to])
    if to == FLOAT4:
        return _on_float4_grid(quotient.float())
    dtype = FLOAT8[to]
    if saturate:
        limit = torch.finfo(dtype).max
        quotient = quotient.clamp(-limit, limit)
    elif dtype == torch.float8_e4m3fn:  # which torch saturates by itself
        quotient = torch.where(quotient.abs() > LARGEST_ROUNDED_TO_E4M3FN, float("nan"), quotient)
    return quotient.to(dtype)


def _on_float4_grid(x: Tensor) -> Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with the sign of x."""
    magnitude = x.abs().clamp(max=LARGEST_FLOAT4)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.copysign(torch.round(magnitude / step) * step, x)
