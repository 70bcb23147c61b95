"""Weights that were dequantized from llama.cpp's blocks, which loops over single numbers make here, are found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rewrite_checks import captured, context_of
from torch import nn

from compiler.evidence.cost import weight_bytes
from compiler.grafting import apply_graft
from compiler.ops.quantized_linear import dequantized_weight
from compiler.passes.quantize import Quantize
from compiler.quantization.byte_scales import exact_bytes
from compiler.quantization.kept_grid import BLOCK_SIZE, kept_grid, kept_in_bytes

ROWS, BLOCKS = 5, 3
FORMS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}


def stored_block(numbers: list[float], form: str) -> list[float]:
    """What quantize_row_*_ref of ggml-quants.c leaves of a block."""

    def half(x: float) -> float:
        return float(np.float16(x))

    if form == "Q4_1":
        lowest = min(numbers)
        step = (max(numbers) - lowest) / 15
        codes = [min(15, int((x - lowest) / step + 0.5)) if step else 0 for x in numbers]
        return [half(step) * code + half(lowest) for code in codes]
    extreme = max(numbers, key=abs)
    if form == "Q4_0":
        step = extreme / -8
        codes = [min(15, int(x / step + 8.5)) if step else 8 for x in numbers]
        return [(code - 8) * half(step) for code in codes]
    step = abs(extreme) / 127
    return [round(x / step) * half(step) if step else 0.0 for x in numbers]


def stored_weight(form: str) -> torch.Tensor:
    drawn = torch.randn(ROWS, BLOCKS, BLOCK_SIZE, generator=torch.Generator().manual_seed(0)) * 0.1
    drawn[1, 1], drawn[2, 0] = 0.0, 0.25
    rows = [[x for block in row for x in stored_block(block.tolist(), form)] for row in drawn]
    return torch.tensor(rows, dtype=torch.float64).float()


def on_grid() -> nn.Linear:
    """A layer whose weights are Q4_1's."""
    layer = nn.Linear(BLOCKS * BLOCK_SIZE, ROWS * 3, bias=False)
    layer.weight = nn.Parameter(stored_weight("Q4_1").repeat(3, 1))
    return layer


@pytest.mark.parametrize("form", FORMS)
def test_blocks_are_found_again(form: str) -> None:
    weight = stored_weight(form)
    found = kept_grid(weight, FORMS[form])
    assert found is not None
    assert (found.zero_points is not None) == (form == "Q4_1")
    values = dequantized_weight(found.weight, found.scales, found.zero_points, found.bits, weight.shape[1])
    assert float((values - weight).abs().max()) <= 1e-6 * float(weight.abs().max())
    assert torch.equal(found.scales.half().float(), found.scales)


@pytest.mark.parametrize("form", FORMS)
def test_one_number_beside_the_grid_is_enough(form: str) -> None:
    weight = stored_weight(form)
    weight[3, 40] += 0.2 * float((weight[3, 33] - weight[3, 40]).abs())
    assert kept_grid(weight, FORMS[form]) is None


@pytest.mark.parametrize("form", FORMS)
def test_steps_and_minima_fit_in_a_byte(form: str) -> None:
    """Each is off by at most half a step of its row's byte, and a code by what that leaves of a rounding."""
    weight = stored_weight(form)
    found = kept_grid(weight, FORMS[form])
    assert found is not None
    held = kept_in_bytes(weight, found)
    assert exact_bytes(held.scales) is not None
    assert (held.zero_points is None) == (found.zero_points is None)
    codes, least = 2 ** (found.bits - 1), torch.zeros(ROWS)
    levels = 127 if form == "Q4_0" else 255  # steps of Q4_0 have both signs
    if found.zero_points is not None:
        assert held.zero_points is not None
        assert exact_bytes(-held.zero_points * held.scales, 1e-6) is not None
        codes, least = 2**found.bits - 1, (found.zero_points * found.scales).abs().amax(1)
    values = dequantized_weight(held.weight, held.scales, held.zero_points, held.bits, weight.shape[1])
    allowed = (codes * found.scales.abs().amax(1) + least) * 0.51 / levels
    assert bool(((values - weight).abs() <= allowed[:, None]).all())


def test_blocks_alone_in_their_rows_stay_as_they_are() -> None:
    weight = stored_weight("Q4_1")[:, :BLOCK_SIZE]
    found = kept_grid(weight, 4)
    assert found is not None
    assert kept_in_bytes(weight, found) is found


def test_rows_that_float16_has_no_number_for_stay_as_they_are() -> None:
    weight = stored_weight("Q4_0")
    found = kept_grid(weight, 4)
    assert found is not None
    tiny = replace(found, scales=found.scales * 2.0**-40)
    assert kept_in_bytes(weight * 2.0**-40, tiny) is tiny


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_other_weights_lie_on_no_grid(bits: int) -> None:
    drawn = torch.randn(ROWS, BLOCKS * BLOCK_SIZE, generator=torch.Generator().manual_seed(1))
    assert kept_grid(drawn, bits) is None
    assert kept_grid(stored_weight("Q4_1")[:, :50], bits) is None


def test_a_layer_keeps_its_grid_and_gives_what_it_gave() -> None:
    x = torch.randn(2, BLOCKS * BLOCK_SIZE, generator=torch.Generator().manual_seed(2))
    program = captured(on_grid().eval(), x=x)
    found, result = apply_graft(Quantize(bits=4), program, (), context_of(program))
    assert "lie in already" in result.outcomes[0].note
    (ours,), (theirs,) = found.run(x), program.run(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    rounded, _ = apply_graft(Quantize(bits=4, keep_grid=False), program, (), context_of(program))
    assert float((rounded.run(x)[0] - theirs).norm() / theirs.norm()) > 0.01


def test_a_budget_may_keep_the_grid_or_give_it_up_for_fewer_bytes() -> None:
    program = captured(on_grid().eval(), x=torch.zeros(2, BLOCKS * BLOCK_SIZE))
    fours = [one for one in Quantize.candidates("linear") if (one.bits, one.activations) == (4, "none")]
    found = [apply_graft(one, program, (), context_of(program)) for one in fours]
    sizes = {"lie in already" in result.outcomes[0].note: weight_bytes(grafted) for grafted, result in found}
    assert sizes.keys() == {True, False}
    assert sizes[False] < sizes[True]
