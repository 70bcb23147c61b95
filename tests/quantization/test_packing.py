"""Codes come out of their bytes as they went in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.quantization.packing import (
    pack_codes,
    pack_zero_points,
    packed_planes,
    packed_width,
    repack_codes,
    unpack_codes,
    unpack_zero_points,
)

BITS = st.integers(1, 8)


@given(bits=BITS, rows=st.integers(1, 4), groups=st.integers(1, 9), seed=st.integers(0, 999))
def test_codes_survive_packing(bits: int, rows: int, groups: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, groups * 8), generator=torch.Generator().manual_seed(seed))
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_width(groups * 8, bits)) == (rows, groups * bits)
    assert torch.equal(unpack_codes(packed, bits).long(), codes)


@given(bits=st.sampled_from([2, 3, 4, 8]), blocks=st.integers(1, 9), seed=st.integers(0, 999))
def test_zero_points_survive_packing_in_any_number(bits: int, blocks: int, seed: int) -> None:
    zeros = torch.randint(0, 2**bits, (3, blocks), generator=torch.Generator().manual_seed(seed))
    packed = pack_zero_points(zeros, bits)
    assert packed.shape == (3, -(-blocks // 8) * 3 if bits == 3 else -(-blocks * bits // 8))
    assert torch.equal(unpack_zero_points(packed, bits, blocks).long(), zeros)


def test_the_lowest_bits_come_first() -> None:
    assert pack_codes(torch.tensor([1, 2, 3, 4]), 4).tolist() == [0x21, 0x43]
    assert pack_codes(torch.tensor([0, 1, 2, 3]), 2).tolist() == [0b11100100]


def test_six_bits_are_a_plane_of_four_and_a_plane_of_two() -> None:
    high, low = packed_planes(pack_codes(torch.tensor([0b000001, 0b111110, 0b101011, 0b010100]), 6), 6)
    assert unpack_codes(high, 4).tolist() == [0b0000, 0b1111, 0b1010, 0b0101]
    assert unpack_codes(low, 2).tolist() == [0b01, 0b10, 0b11, 0b00]


@given(bits=BITS, seed=st.integers(0, 999))
def test_every_bit_lies_where_a_plain_loop_puts_it(bits: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (16,), generator=torch.Generator().manual_seed(seed)).tolist()
    expected, below = [], bits
    for plane in [8] if bits == 8 else [size for size in (4, 2, 1) if bits & size]:
        below -= plane
        stream = 0
        for place, code in enumerate(codes):
            stream |= ((code >> below) % 2**plane) << (place * plane)
        expected += list(stream.to_bytes(16 * plane // 8, "little"))
    assert pack_codes(torch.tensor(codes), bits).tolist() == expected


@given(bits=BITS, more=st.integers(0, 7), seed=st.integers(0, 999))
def test_codes_move_into_more_bits(bits: int, more: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 16), generator=torch.Generator().manual_seed(seed))
    wider = min(bits + more, 8)
    assert torch.equal(repack_codes(pack_codes(codes, bits), bits, wider), pack_codes(codes, wider))


@pytest.mark.parametrize(("count", "bits"), [(3, 4), (6, 2), (6, 6), (2, 6), (4, 3), (4, 1)])
def test_codes_that_fill_no_whole_bytes_are_refused(count: int, bits: int) -> None:
    with pytest.raises(ValueError, match="do not fill whole bytes"):
        packed_width(count, bits)
