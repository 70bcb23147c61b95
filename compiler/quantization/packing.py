"""Codes of 1 to 8 bits in bytes, the lowest bits first, as com.microsoft MatMulNBits and GatherBlockQuantized read
those of 2, 4 and 8 bits.

Other numbers of bits are planes of 4, 2 and 1 bits: of a row the highest bits of every code, packed, then the next
ones, packed. Three bits are 2 and 1, six are 4 and 2. Each plane is a plain tensor to a runtime that has its type.
"""

from __future__ import annotations

import torch
from torch import Tensor


def planes_of(bits: int) -> tuple[int, ...]:
    """The bits of each plane, the highest first."""
    return (8,) if bits == 8 else tuple(plane for plane in (4, 2, 1) if bits & plane)


def packed_width(count: int, bits: int) -> int:
    """Bytes that `count` codes take. Raises ValueError where they do not fill whole bytes."""
    if any(count * plane % 8 for plane in planes_of(bits)):
        raise ValueError(f"{count} codes of {bits} bits do not fill whole bytes")
    return count * bits // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., count], each in 0 to 2**bits - 1, as uint8 [..., count * bits / 8]."""
    packed_width(codes.shape[-1], bits)
    codes = codes.to(torch.uint8)
    packed, below = [], bits
    for plane in planes_of(bits):
        below -= plane
        packed.append(_packed_plane((codes >> below) & (2**plane - 1), plane))
    return torch.cat(packed, dim=-1) if len(packed) > 1 else packed[0]


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """The codes uint8 [..., count] of `packed` uint8 [..., count * bits / 8]."""
    (first, high), *rest = zip(planes_of(bits), packed_planes(packed, bits), strict=True)
    codes = _unpacked_plane(high, first)
    for plane, part in rest:
        codes = (codes << plane) | _unpacked_plane(part, plane)
    return codes


def repack_codes(packed: Tensor, bits: int, to: int) -> Tensor:
    """`packed` codes of `bits` as codes of `to` bits, of which they keep the lowest."""
    return packed if bits == to else pack_codes(unpack_codes(packed, bits), to)


def packed_planes(packed: Tensor, bits: int) -> tuple[Tensor, ...]:
    """The planes of packed codes: each [..., count * plane / 8], the highest bits first."""
    planes = planes_of(bits)
    count = packed.shape[-1] * 8 // bits
    return torch.split(packed, [count * plane // 8 for plane in planes], dim=-1)


def pack_zero_points(zero_points: Tensor, bits: int) -> Tensor:
    """Zero points [rows, blocks] as uint8 [rows, bytes]: rows fill whole bytes of each plane."""
    padding = -zero_points.shape[-1] % (8 // min(planes_of(bits)))
    return pack_codes(torch.nn.functional.pad(zero_points, (0, padding)), bits)


def unpack_zero_points(packed: Tensor, bits: int, blocks: int) -> Tensor:
    """The zero points uint8 [rows, blocks] of `packed`."""
    return unpack_codes(packed, bits)[..., :blocks]


def _packed_plane(codes: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    packed = codes[..., ::per_byte].clone()
    for place in range(1, per_byte):
        packed |= codes[..., place::per_byte] << (bits * place)
    return packed


def _unpacked_plane(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed
    codes = packed.new_empty(*packed.shape, 8 // bits)
    for place in range(8 // bits):  # one shift for all bytes is several times as fast as a tensor of shifts
        codes[..., place] = (packed >> (bits * place)) & (2**bits - 1)
    return codes.flatten(-2)
