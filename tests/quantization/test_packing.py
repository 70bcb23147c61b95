"""Codes come out of their bytes as they went in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.quantization.packing import (
    pack_codes,
    pack_zero_points,
    packed_width,
    six_bit_planes,
    unpack_codes,
    unpack_zero_points,
)

BITS = st.sampled_from([2, 4, 6, 8])


@given(bits=BITS, rows=st.integers(1, 4), groups=st.integers(1, 9), seed=st.integers(0, 999))
def test_codes_survive_packing(bits: int, rows: int, groups: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, groups * 4), generator=torch.Generator().manual_seed(seed))
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_width(groups * 4, bits)) == (rows, groups * 4 * bits // 8)
    assert torch.equal(unpack_codes(packed, bits).long(), codes)


@given(bits=st.sampled_from([2, 4, 8]), blocks=st.integers(1, 9), seed=st.integers(0, 999))
def test_zero_points_survive_packing_in_any_number(bits: int, blocks: int, seed: int) -> None:
    zeros = torch.randint(0, 2**bits, (3, blocks), generator=torch.Generator().manual_seed(seed))
    packed = pack_zero_points(zeros, bits)
    assert packed.shape == (3, -(-blocks * bits // 8))
    assert torch.equal(unpack_zero_points(packed, bits, blocks).long(), zeros)


def test_the_lowest_bits_come_first() -> None:
    assert pack_codes(torch.tensor([1, 2, 3, 4]), 4).tolist() == [0x21, 0x43]
    assert pack_codes(torch.tensor([0, 1, 2, 3]), 2).tolist() == [0b11100100]


def test_six_bits_are_a_plane_of_four_and_a_plane_of_two() -> None:
    high, low = six_bit_planes(pack_codes(torch.tensor([0b000001, 0b111110, 0b101011, 0b010100]), 6))
    assert unpack_codes(high, 4).tolist() == [0b0000, 0b1111, 0b1010, 0b0101]
    assert unpack_codes(low, 2).tolist() == [0b01, 0b10, 0b11, 0b00]


@pytest.mark.parametrize(("count", "bits"), [(3, 4), (6, 2), (6, 6), (2, 6)])
def test_codes_that_fill_no_whole_bytes_are_refused(count: int, bits: int) -> None:
    with pytest.raises(ValueError, match="do not fill whole bytes"):
        packed_width(count, bits)
