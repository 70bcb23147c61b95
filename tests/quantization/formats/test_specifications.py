"""Each format against a plain loop written from its specification, or against the library that is the standard."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from compiler.quantization.block_rounding import nearest_blocks
from compiler.quantization.formats.fp8_e4m3 import Fp8E4m3
from compiler.quantization.formats.fp8_e5m2 import Fp8E5m2
from compiler.quantization.formats.int3 import Int3
from compiler.quantization.formats.levels import float_levels
from compiler.quantization.formats.mxfp4 import LEVELS, Mxfp4
from compiler.quantization.formats.mxint8 import Mxint8
from compiler.quantization.formats.nf4 import VALUES, Nf4
from compiler.quantization.formats.ternary import Ternary
from compiler.quantization.formats.ternary_base3 import TernaryBase3

BLOCK = 32


def numbers(seed: int = 0, rows: int = 4, width: int = 96) -> Tensor:
    """Of many magnitudes, with zeros."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator) * torch.exp(
        3 * torch.randn(rows, width, generator=generator)
    )
    values[0, :5] = 0.0
    return values


def shared_exponent(block: list[float], largest_exponent: int) -> int:
    """OCP MX v1.0, section 6.3: floor(log2(max |v|)) - emax of the element type."""
    largest = max(abs(value) for value in block)
    return -127 if largest == 0 else max(math.frexp(largest)[1] - 1 - largest_exponent, -127)


def half_even(value: Fraction) -> int:
    return round(value)  # Python's own rounding of fractions: exact, halves to even


@pytest.mark.parametrize("seed", range(3))
def test_mxint8_is_that_of_the_specification(seed: int) -> None:
    weight = numbers(seed)
    packed = nearest_blocks(weight, Mxint8.for_width(96, clip="none"))
    for row, (codes, scales) in enumerate(zip(packed.weight, packed.scales, strict=True)):
        for block in range(3):
            values = weight[row, block * BLOCK : (block + 1) * BLOCK].tolist()
            exponent = shared_exponent(values, 0)
            assert int(scales[block]) == exponent + 127
            for code, value in zip(codes[block].tolist(), values, strict=True):
                expected = half_even(Fraction(value) / Fraction(2) ** exponent * 64)
                assert code - 128 == max(-127, min(127, expected))


@pytest.mark.parametrize("seed", range(3))
def test_mxfp4_is_that_of_the_specification(seed: int) -> None:
    """Elements by ml_dtypes, two a byte, the first in the low half; a zero without its sign."""
    weight = numbers(seed)
    packed = nearest_blocks(weight, Mxfp4.for_width(96, clip="none"))
    for row, (stored, scales) in enumerate(zip(packed.weight, packed.scales, strict=True)):
        for block in range(3):
            values = weight[row, block * BLOCK : (block + 1) * BLOCK].tolist()
            exponent = shared_exponent(values, 2)
            assert int(scales[block]) == exponent + 127
            elements = np.array(values, np.float64) / 2.0**exponent
            clipped = np.clip(elements, -6, 6).astype(ml_dtypes.float4_e2m1fn)
            bits = clipped.view(np.uint8) & 15
            bits = np.where(clipped.astype(np.float32) == 0, 0, bits)
            expected = [int(low) | int(high) << 4 for low, high in zip(bits[::2], bits[1::2], strict=True)]
            assert stored[block].tolist() == expected


@pytest.mark.parametrize(
    ("form", "dtype"), [(Fp8E4m3, ml_dtypes.float8_e4m3fn), (Fp8E5m2, ml_dtypes.float8_e5m2)], ids=["e4m3", "e5m2"]
)
def test_fp8_rounds_as_ml_dtypes_does(form: type, dtype: type) -> None:
    weight = numbers(7)
    made = form.for_width(96, clip="none")
    packed = nearest_blocks(weight, made)
    for row in range(len(weight)):
        scale = np.float32(packed.scales[row, 0].item())
        largest = float(weight[row].abs().max()) / float(ml_dtypes.finfo(dtype).max)
        assert abs(float(scale) / largest - 1) < 1e-3
        quotient = np.clip(
            weight[row].numpy() / scale, float(ml_dtypes.finfo(dtype).min), float(ml_dtypes.finfo(dtype).max)
        )
        expected = quotient.astype(dtype)
        found = packed.weight[row, 0].numpy().view(dtype)
        assert np.array_equal(found.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("exponent_bits", "mantissa_bits", "dtype"),
    [
        (2, 1, "float4_e2m1fn"),
        (2, 3, "float6_e2m3fn"),
        (3, 2, "float6_e3m2fn"),
        (4, 3, "float8_e4m3fn"),
        (5, 2, "float8_e5m2"),
    ],
)
def test_small_floats_are_those_of_ml_dtypes(exponent_bits: int, mantissa_bits: int, dtype: str) -> None:
    kind = getattr(ml_dtypes, dtype)
    levels = float_levels(exponent_bits, mantissa_bits, float(ml_dtypes.finfo(kind).max))
    every = np.arange(2 ** (1 + exponent_bits + mantissa_bits), dtype=np.uint8).view(kind).astype(np.float32)
    known = {
        float(value): pattern for pattern, value in enumerate(every) if np.isfinite(value) and (value or not pattern)
    }
    assert dict(zip(levels.values.tolist(), levels.patterns.tolist(), strict=True)) == known
    halves = (levels.values[:-1] + levels.values[1:]) / 2
    probes = torch.cat([halves, levels.values, torch.linspace(-1, 1, 4001) * levels.values[-1]])
    nearest = levels.values[torch.bucketize(probes, levels.boundaries)]
    assert np.array_equal(nearest.numpy(), probes.numpy().astype(kind).astype(np.float32))


def test_scales_of_mx_survive_all_exponents() -> None:
    from compiler.quantization.formats.microscaling import from_scale_bytes, scale_bytes

    stored = torch.arange(1, 255, dtype=torch.uint8)
    scales = from_scale_bytes(stored)
    assert scales.tolist() == [2.0 ** (byte - 127) for byte in range(1, 255)]
    assert torch.equal(scale_bytes(scales), stored)
    kind = ml_dtypes.float8_e8m0fnu
    assert np.array_equal(scales.numpy(), stored.numpy().view(kind).astype(np.float32))


def test_mse_takes_a_larger_scale_of_mx_only_where_that_is_nearer() -> None:
    weight = numbers(5)
    plain, best = (Mxfp4.for_width(96, clip=clip) for clip in ("none", "mse"))
    errors = [
        (form.weight(nearest_blocks(weight, form), 96) - weight).unflatten(1, (-1, BLOCK)).square().sum(-1)
        for form in (plain, best)
    ]
    assert (errors[1] <= errors[0]).all()
    assert (errors[1] < errors[0]).any()


def test_ternary_without_clipping_is_that_of_bitnet() -> None:
    """RoundClip(w / mean |w|, -1, 1), with halves to even as torch rounds."""
    weight = numbers(2, width=128)
    packed = nearest_blocks(weight, Ternary.for_width(128, clip="none"))
    for row in range(len(weight)):
        mean = float(packed.scales[row, 0])
        exact = sum(abs(value) for value in weight[row].tolist()) / 128
        assert abs(mean / exact - 1) < 1e-3
        held = np.float32(mean)
        expected = [max(-1, min(1, round(float(np.float32(value) / held)))) for value in weight[row].tolist()]
        found = [(byte >> (2 * place) & 3) - 2 for byte in packed.weight[row, 0].tolist() for place in range(4)]
        assert found == expected


def test_ternary_with_clipping_is_near_the_optimum_of_twn() -> None:
    """Li et al. 2016, eq. 6: of weights in order of magnitude, the best count k maximises (sum of k largest)**2 / k."""
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(4))
    form = Ternary.for_width(128)
    found = (form.weight(nearest_blocks(weight, form), 128) - weight).square().sum(1)
    for row in range(len(weight)):
        order = sorted((abs(value) for value in weight[row].tolist()), reverse=True)
        best = max(sum(order[:count]) ** 2 / count for count in range(1, 129))
        least = sum(value**2 for value in order) - best
        assert least - 1e-4 <= float(found[row]) < 1.03 * least


def test_base_three_digits() -> None:
    weight = torch.randn(3, 128, generator=torch.Generator().manual_seed(4))
    plain, dense = Ternary.for_width(128), TernaryBase3.for_width(128)
    two_bits, base3 = nearest_blocks(weight, plain), nearest_blocks(weight, dense)
    for row in range(3):
        values = [(byte >> (2 * place) & 3) - 2 for byte in two_bits.weight[row, 0].tolist() for place in range(4)]
        digits = [value + 1 for value in values] + [0, 0]
        expected = [sum(digit * 3**place for place, digit in enumerate(digits[at : at + 5])) for at in range(0, 130, 5)]
        assert base3.weight[row, 0].tolist() == expected


def test_int3_lies_in_a_plane_of_two_bits_and_one_of_one() -> None:
    weight = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))
    packed = nearest_blocks(weight, Int3.for_width(32, block=32, symmetric=True, clip="none"))
    for row in range(2):
        high, low = packed.weight[row, 0, :8].tolist(), packed.weight[row, 0, 8:].tolist()
        scale = np.float32(packed.scales[row, 0].item())
        for place, value in enumerate(weight[row].tolist()):
            code = (high[place // 4] >> (2 * (place % 4)) & 3) << 1 | (low[place // 8] >> (place % 8) & 1)
            assert code == max(0, min(7, round(float(np.float32(value) / scale)) + 4))


def test_nf4_has_the_quantiles_of_the_paper() -> None:
    """QLoRA, appendix E: eight quantiles on the side of zero and above, nine with zero below, from offset 0.9677083."""
    offset = 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([positive, [0.0], negative]))
    np.testing.assert_allclose(VALUES.numpy(), expected / np.abs(expected).max(), atol=2e-7)


def test_nf4_takes_the_nearest_quantile() -> None:
    weight = numbers(3, width=64)
    packed = nearest_blocks(weight, Nf4.for_width(64, clip="none"))
    for row in range(len(weight)):
        scale = packed.scales[row, 0].float()
        assert abs(float(scale / weight[row].abs().max()) - 1) < 1e-3
        codes = [byte >> shift & 15 for byte in packed.weight[row, 0].tolist() for shift in (0, 4)]
        for code, value in zip(codes, (weight[row] / scale).tolist(), strict=True):
            distances = [abs(level - value) for level in VALUES.tolist()]
            assert distances[code] <= min(distances) + 1e-7


def test_e2m1_has_eight_magnitudes() -> None:
    assert LEVELS.values.tolist()[7:] == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
