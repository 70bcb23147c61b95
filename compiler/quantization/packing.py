"""Codes of 2, 4, 6 or 8 bits in bytes, the lowest bits first, as com.microsoft MatMulNBits and GatherBlockQuantized
read them.

Six bits are two planes: the high four bits of every code of a row, packed, then the low two bits, packed. Each plane is
a plain 4-bit or 2-bit tensor to a runtime that has those types.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_width(count: int, bits: int) -> int:
    """Bytes that `count` codes take. Raises ValueError where they do not fill whole bytes."""
    planes = (4, 2) if bits == 6 else (bits,)
    if any(count * plane % 8 for plane in planes):
        raise ValueError(f"{count} codes of {bits} bits do not fill whole bytes")
    return count * bits // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., count], each in 0 to 2**bits - 1, as uint8 [..., count * bits / 8]."""
    packed_width(codes.shape[-1], bits)
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes
    if bits == 6:
        return torch.cat([pack_codes(codes >> 2, 4), pack_codes(codes & 3, 2)], dim=-1)
    per_byte = 8 // bits
    packed = codes[..., ::per_byte].clone()
    for place in range(1, per_byte):
        packed |= codes[..., place::per_byte] << (bits * place)
    return packed


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """The codes uint8 [..., count] of `packed` uint8 [..., count * bits / 8]."""
    if bits == 8:
        return packed
    if bits == 6:
        high, low = six_bit_planes(packed)
        return (unpack_codes(high, 4) << 2) | unpack_codes(low, 2)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return torch.bitwise_and(packed[..., None] >> shifts, 2**bits - 1).flatten(-2)


def six_bit_planes(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The high plane [..., count / 2] and the low plane [..., count / 4] of packed 6-bit codes."""
    width = packed.shape[-1] * 2 // 3
    return packed[..., :width], packed[..., width:]


def pack_zero_points(zero_points: Tensor, bits: int) -> Tensor:
    """Zero points [rows, blocks] as uint8 [rows, ceil(blocks * bits / 8)]: rows start on whole bytes."""
    padding = -zero_points.shape[-1] % (8 // bits)
    return pack_codes(torch.nn.functional.pad(zero_points, (0, padding)), bits)


def unpack_zero_points(packed: Tensor, bits: int, blocks: int) -> Tensor:
    """The zero points uint8 [rows, blocks] of `packed`."""
    return unpack_codes(packed, bits)[..., :blocks]
