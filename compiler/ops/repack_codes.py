"""regraft::repack_codes(packed, bits, to) -> the same codes in another number of bits each.

    packed uint8 [..., count * bits / 8]  ->  uint8 [..., count * to / 8];   bits and `to` from 1 to 8

At 8 a byte is a code. `to` below `bits` keeps the lowest bits. Codes lie as compiler.quantization.packing
says: those of 3, 5, 6 and 7 bits in planes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.quantization import packing

SCHEMA = "(Tensor packed, int bits, int to) -> Tensor"


@torch.library.custom_op("regraft::repack_codes", mutates_args=(), schema=SCHEMA)
def repack_codes(packed: Tensor, bits: int, to: int) -> Tensor:
    """Codes as the module's docstring defines them. Raises ValueError where they do not fill whole bytes."""
    return packing.repack_codes(packed, bits, to).clone(memory_format=torch.contiguous_format)


@repack_codes.register_fake
def _(packed: Tensor, bits: int, to: int) -> Tensor:
    if packed.dtype != torch.uint8:
        raise ValueError(f"codes are packed in bytes, not in {packed.dtype}")
    count = packed.shape[-1] * 8 // bits
    return packed.new_empty((*packed.shape[:-1], packing.packed_width(count, to)))
