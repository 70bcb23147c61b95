"""Codes and a correction in turns: against both parts alone, and the algorithm's first turn by hand."""

from __future__ import annotations

import pytest
import torch

from compiler.quantization.stand_ins import BlockForm, LinearWeights, block_linear
from compiler.structured.low_rank_plus_quantized import alternated, dense_codes
from compiler.structured.weighing import Weighing

FORM = BlockForm(2, 16, "none")


def layer() -> LinearWeights:
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(24, 2, generator=generator) @ torch.randn(2, 32, generator=generator)
    return LinearWeights(strong + 0.2 * torch.randn(24, 32, generator=generator), None, None)


def moment() -> torch.Tensor:
    x = torch.randn(100, 32, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 32)
    return x.T @ x / 100


@pytest.mark.parametrize("weighing", [Weighing(), Weighing(moment=moment())])
def test_both_together_lose_less_than_one_turn(weighing: Weighing) -> None:
    weights = layer()
    codes, factors, lost, alone = alternated(weights, FORM, "nearest", 4, weighing)
    found = dense_codes(codes, 32) + factors.dense()
    assert weighing.part_lost(weights.weight, found) == pytest.approx(lost, rel=1e-6)

    first = dense_codes(block_linear(weights, FORM, "nearest"), 32)
    assert weighing.part_lost(weights.weight, first) == pytest.approx(alone, rel=1e-6)
    root = (
        torch.eye(32, dtype=torch.float64)
        if weighing.moment is None
        else torch.linalg.cholesky(weighing.moment.double())
    )
    u, s, v = torch.linalg.svd((weights.weight.double() - first) @ root)
    by_hand = first + u[:, :4] * s[:4] @ v[:4] @ torch.linalg.inv(root)
    one_turn = weighing.part_lost(weights.weight, by_hand)
    assert lost < one_turn * (1 + 1e-9)
    assert one_turn < alone
    assert lost < 0.5 * alone
