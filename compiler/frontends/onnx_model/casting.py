"""Conversion between ONNX element types, to the rules of ONNX's Cast, of tensors in the dtypes that carry them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from compiler.frontends.onnx_model.element_types import CARRIERS

FLOAT8 = frozenset({"FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"})
EXPONENT_BITS, MANTISSA_BITS = 8, 23
E8M0_LARGEST, E8M0_NAN = 254, 255
E8M0_SMALLEST = 2.0**-127
LARGEST_ROUNDED_TO_E4M3FN = 464.0
FLOAT4_LARGEST = 6.0
FLOAT4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""By the low three bits of the code; the fourth is the sign."""


class SubByte(NamedTuple):
    """An integer type of fewer than eight bits."""

    bits: int
    signed: bool


SUB_BYTE = {
    "INT4": SubByte(4, True),
    "UINT4": SubByte(4, False),
    "INT2": SubByte(2, True),
    "UINT2": SubByte(2, False),
}


def converted(x: Tensor, target: str, *, saturate: bool = True, round_mode: str = "up") -> Tensor:
    """`x` as the ONNX type named `target`, in its carrier.

    `saturate` and `round_mode` are Cast's: what becomes of numbers that an 8-bit float cannot hold. Integers drop the
    higher bits, floats round half to even, floats to integers are cut. Raises ValueError for types without a carrier.
    """
    if target not in CARRIERS:
        raise ValueError(f"there are no tensors of {target.lower()} here")
    if target in SUB_BYTE:
        return wrapped(x if not x.is_floating_point() else x.to(torch.int32), target)
    if target == "FLOAT4E2M1":
        return rounded_to_float4(x)
    if target == "FLOAT8E8M0":
        return rounded_to_power_of_two(x, saturate=saturate, round_mode=round_mode)
    if target in FLOAT8 and saturate:
        largest = torch.finfo(CARRIERS[target]).max
        x = torch.clamp(x.float(), -largest, largest)
    elif target == "FLOAT8E4M3FN":  # which torch saturates by itself
        x = torch.where(x.abs() > LARGEST_ROUNDED_TO_E4M3FN, float("nan"), x)
    return x.to(CARRIERS[target])


def wrapped(x: Tensor, target: str) -> Tensor:
    """The low bits of integers as a sub-byte type, in two's complement."""
    form = SUB_BYTE[target]
    low = torch.bitwise_and(x.to(torch.int32), 2**form.bits - 1)
    if form.signed:
        sign = 2 ** (form.bits - 1)
        low = torch.bitwise_xor(low, sign) - sign
    return low.to(CARRIERS[target])


def rounded_to_float4(x: Tensor) -> Tensor:
    """The nearest numbers with two exponent bits and one mantissa bit, halves to even; infinity becomes 6, NaN 0."""
    x = torch.where(torch.isnan(x), 0.0, x.float())
    magnitude = torch.clamp(x.abs(), max=FLOAT4_LARGEST)
    step = torch.where(magnitude < 2.0, 0.5, torch.where(magnitude < 4.0, 1.0, 2.0))
    rounded = torch.round(magnitude / step) * step
    return torch.where(x < 0, -rounded, rounded)


def rounded_to_power_of_two(x: Tensor, *, saturate: bool, round_mode: str) -> Tensor:
    """Exponents alone: the power of two next to positive numbers, up, down or the nearest, as float8_e8m0fnu."""
    bits = x.float().view(torch.int32)
    exponent = (bits >> MANTISSA_BITS) & (2**EXPONENT_BITS - 1)
    fraction = bits & (2**MANTISSA_BITS - 1)
    half = 2 ** (MANTISSA_BITS - 1)
    if round_mode == "up":
        exponent = exponent + (fraction > 0)
    elif round_mode == "nearest":
        exponent = exponent + ((fraction > half) | ((fraction == half) & (exponent > 0)))
    elif round_mode != "down":
        raise ValueError(f"there is no rounding mode {round_mode!r}")
    beyond = torch.clamp(exponent, max=E8M0_LARGEST) if saturate else torch.where(x < E8M0_SMALLEST, E8M0_NAN, exponent)
    codes = torch.where(torch.isnan(x), E8M0_NAN, beyond)
    bits = torch.where(codes == 0, 2 ** (MANTISSA_BITS - 1), codes << MANTISSA_BITS)
    return bits.view(torch.float32).to(torch.float8_e8m0fnu)


def reinterpreted(x: Tensor, source: str, target: str) -> Tensor:
    """The same bits as another type of the same width. Raises ValueError where the widths differ."""
    if _width(source) != _width(target):
        raise ValueError(f"{source.lower()} has {_width(source)} bits and {target.lower()} {_width(target)}")
    if _width(source) >= 8:
        return x.view(CARRIERS[target])
    codes = float4_codes(x) if source == "FLOAT4E2M1" else x
    return float4_of_codes(codes) if target == "FLOAT4E2M1" else wrapped(codes, target)


def float4_codes(x: Tensor) -> Tensor:
    """The four bits of numbers on the grid of float4, as int32."""
    magnitudes = torch.tensor(FLOAT4_MAGNITUDES[1:], dtype=x.dtype)
    index = (x.abs().unsqueeze(-1) >= magnitudes).sum(-1)
    return index.to(torch.int32) | (torch.signbit(x).to(torch.int32) << 3)


def float4_of_codes(codes: Tensor) -> Tensor:
    """The numbers behind four bits."""
    low = codes.to(torch.int64)
    magnitude = torch.tensor(FLOAT4_MAGNITUDES)[low & 7]
    return torch.where((low & 8) != 0, -magnitude, magnitude)


def _width(data_type: str) -> int:
    if data_type in SUB_BYTE:
        return SUB_BYTE[data_type].bits
    return 4 if data_type == "FLOAT4E2M1" else 8 * torch.empty(0, dtype=CARRIERS[data_type]).element_size()
