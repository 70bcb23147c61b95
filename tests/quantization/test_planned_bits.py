"""Bits by site: the knapsack against brute force, gradients against autograd, a model with one loud site."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rewrite_checks import captured, context_of
from torch import Tensor, nn

from compiler.grafting import apply_graft
from compiler.passes.quantize import Quantize
from compiler.quantization.bit_allocation import allocate_bits
from compiler.quantization.sensitivity import gradient_power

CHOICES = (2, 4, 8)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    average=st.floats(2, 8),
    seed=st.integers(0, 999),
)
def test_no_choice_costs_less_within_the_average(sizes: list[int], average: float, seed: int) -> None:
    drawn = torch.rand(len(sizes), 3, generator=torch.Generator().manual_seed(seed)).tolist()
    costs = [dict(zip(CHOICES, sorted(row, reverse=True), strict=True)) for row in drawn]
    found = allocate_bits(sizes, costs, average)

    def cost(choice: tuple[int, ...]) -> float:
        return sum(row[bits] for row, bits in zip(costs, choice, strict=True))

    def fits(choice: tuple[int, ...]) -> bool:
        return sum(size * bits for size, bits in zip(sizes, choice, strict=True)) <= average * sum(sizes)

    assert fits(tuple(found))
    least = min(cost(choice) for choice in itertools.product(CHOICES, repeat=len(sizes)) if fits(choice))
    assert cost(tuple(found)) == pytest.approx(least)


def test_sizes_without_a_common_divisor_stay_within_the_average() -> None:
    sizes = [1_000_003 + 17 * index for index in range(40)]
    costs = [{2: float(index), 4: 0.1 * index, 8: 0.0} for index in range(40)]
    found = allocate_bits(sizes, costs, 3.0)
    used = sum(size * bits for size, bits in zip(sizes, found, strict=True)) / sum(sizes)
    assert 2.9 < used <= 3.0
    assert found == sorted(found)


def test_an_average_below_the_fewest_bits_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"an average of 1\.5 bits is below the 2 of the fewest"):
        allocate_bits([10], [{2: 1.0, 4: 0.0}], 1.5)


class Two(nn.Module):
    """The second layer's input is scaled up: errors in `loud` matter a hundred times more."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.loud(x)) + 0.01 * torch.tanh(self.quiet(x)))


def example() -> Tensor:
    return torch.randn(32, 64, generator=torch.Generator().manual_seed(0))


def test_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    module = Two().eval()
    program = captured(module, x=example())
    program.role = "classifier"
    nodes = {node.name: node for node in program.graph.nodes}
    found = gradient_power(program, [nodes["linear"]], context_of(program).data, seed=3)
    hidden = module.loud(example()).detach().requires_grad_()
    logits = module.head(torch.tanh(hidden) + 0.01 * torch.tanh(module.quiet(example())))
    generator = torch.Generator().manual_seed(3)
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    assert hidden.grad is not None
    torch.testing.assert_close(found[nodes["linear"]], hidden.grad.square().mean(0))


def test_the_site_that_matters_gets_more_bits() -> None:
    torch.manual_seed(0)
    program = captured(Two().eval(), x=example())
    after, result = apply_graft(Quantize(bits="auto-4", skip=("head",)), program, (), context_of(program))
    notes = {outcome.site: outcome.note for outcome in result.outcomes}
    assert notes["loud"].startswith("4-bit weights in blocks of 32, expected cost ")
    assert notes["quiet"].startswith("4-bit weights")
    _, result = apply_graft(Quantize(bits="auto-3", skip=("head",)), program, (), context_of(program))
    bits = {outcome.site: outcome.note[0] for outcome in result.outcomes}
    assert (bits["loud"], bits["quiet"]) == ("4", "2")
    assert after.run(example())[0].shape == (32, 64)
