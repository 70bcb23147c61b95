"""Layers with static ranges: their numbers, and the integer kernels that ONNX Runtime makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lowered_program import LoweredProgram
from rewrite_checks import captured, context_of
from torch import Tensor, nn

from compiler.grafting import apply_graft
from compiler.passes.quantize import Quantize
from compiler.program import Program
from compiler.quantization.static_layers import MOST_NUMBERS, sampled
from compiler.rewriting import PassResult
from compiler.sites import find_sites

METHODS = ("minmax", "percentile", "mse", "entropy")


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 96), nn.Linear(96, 40, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 40, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)))


@pytest.fixture(scope="module")
def layers() -> tuple[Program, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(6, 20, 48)
    return captured(Layers().eval(), x=x), x


def static(program: Program, **options: Any) -> tuple[Program, PassResult]:
    return apply_graft(Quantize(activations="static", **options), program, (), context_of(program))


def error(found: Program, expected: Program, x: Tensor) -> float:
    (ours,), (theirs,) = found.run(x), expected.run(x)
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("method", METHODS)
def test_products_of_integers_near_the_float_ones(layers: tuple[Program, Tensor], method: str, tmp_path: Path) -> None:
    program, x = layers
    after, result = static(program, calibration=method)
    assert all(f"by {method}" in one.note for one in result.outcomes)
    assert 1e-4 < error(after, program, x) < 0.04
    lowered = LoweredProgram(after, tmp_path)
    assert lowered.lowered.kernels.get("MatMulIntegerToFloat") == 2, lowered.lowered.kernels
    assert "DequantizeLinear" not in lowered.lowered.kernels
    assert lowered.largest_error(x) < 0.02 * float(program.run(x)[0].abs().max())


def test_convolutions_of_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 9, 9)
    program = captured(Convolving().eval(), x=x)
    after, result = static(program, calibration="minmax")
    assert result.changed == ("conv", "head")
    assert 1e-4 < error(after, program, x) < 0.04
    lowered = LoweredProgram(after, tmp_path)
    assert lowered.lowered.kernels.get("QLinearConv") == 2, lowered.lowered.kernels
    assert lowered.largest_error(x) < 0.02 * float(program.run(x)[0].abs().max())


def test_the_budget_goes_on_to_ranges_of_what_comes(layers: tuple[Program, Tensor]) -> None:
    program, _ = layers
    context = replace(context_of(program), max_drop=0.5)
    rung = next(iter(Quantize(activations="static").propose_all(find_sites(program, ("linear",)), program, context)))
    notes = [rung.note]
    while rung.gentler is not None:
        rung = rung.gentler()
        notes.append(rung.note)
    assert [note.split(", ")[1].partition(" from")[0] if "," in note else note for note in notes] == [
        "int8 activations",
        "dynamic int8 activations",
        "dynamic int8 activations with a scale a row",
        "8-bit weights in blocks of 64",
    ]


def test_few_bits_have_no_static_inputs() -> None:
    with pytest.raises(ValueError, match="no kernel for quantized activations"):
        Quantize(bits=4, activations="static")


def test_of_very_many_numbers_some_and_the_extremes_are_kept() -> None:
    values = torch.zeros(MOST_NUMBERS + 10)
    values[1], values[3] = -5.0, 7.0
    kept = sampled([values])
    assert len(kept) <= MOST_NUMBERS
    assert (float(kept.min()), float(kept.max())) == (-5.0, 7.0)
