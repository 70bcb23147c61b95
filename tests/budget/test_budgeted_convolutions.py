"""A budget on convolutions: what may be chosen for them, one by one and where several stand one behind the other."""

from __future__ import annotations

import functools

import torch
from budgeted_models import calibrated
from rewrite_checks import captured
from torch import Tensor, nn

from compiler.budget.measuring import Measuring
from compiler.budget.mix import BudgetedMix
from compiler.budget.places import find_places
from compiler.grafting import apply_graft
from compiler.passes.pruning.prune_neurons import PruneNeurons
from compiler.passes.quantize import Quantize
from compiler.program import Program
from compiler.rewriting import Graft, PassContext

STATIC = "quantize:activations=static"


class Pictures(nn.Module):
    """Three convolutions, the second depthwise, a fourth, and a mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.second, self.third = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 8, 8, 8] to [batch, 24]."""
        hidden = torch.relu(self.second(torch.relu(self.each(torch.relu(self.first(x))))))
        return self.third(hidden).mean((2, 3))


@functools.cache
def pictures() -> Program:
    """The model, which no test changes."""
    torch.manual_seed(0)
    return captured(Pictures().eval(), x=torch.randn(2, 8, 8, 8))


def context(*grafts: type[Graft]) -> PassContext:
    """Calibrated on random pictures, lowered with ONNX Runtime."""
    return calibrated(pictures(), (32, 8, 8, 8), *grafts)


def test_integer_products_are_offered_for_convolutions() -> None:
    surroundings = context(Quantize)
    budget = BudgetedMix(limits=("latency=0.9",))
    places = find_places(pictures())
    measured = Measuring(pictures(), surroundings, places, budget.choices(surroundings), timed=True).run()
    static = [one for one in measured.candidates if one.choice is not None and one.choice.text == STATIC]
    assert [one.place.name for one in static] == ["first", "second", "third"]
    originals = {one.place.name: one.figures for one in measured.candidates if one.choice is None}
    for one in static:
        assert "int8 inputs and outputs" in one.note
        assert one.figures.bytes < originals[one.place.name].bytes
        assert one.figures.seconds is not None
        assert 0.0 < one.cost < 0.1


def test_channels_between_convolutions_go_under_a_budget() -> None:
    surroundings = context(PruneNeurons)
    (chain,) = [place for place in find_places(pictures()) if not place.is_part]
    assert len(chain.covers) == 4
    chosen, record = BudgetedMix(limits=("flops=0.7",)).planned(pictures(), surroundings)
    assert record is not None
    (flops,) = record.limits
    assert flops.measured <= flops.allowed
    after, result = apply_graft(chosen, pictures(), (), surroundings)
    assert len(result.changed) == 1
    assert [one.choice for one in record.places] == ["prune-neurons:ratio=0.5:multiple=8"]
    assert sum(weight.numel() for weight in after.weights().values()) < 0.5 * sum(
        weight.numel() for weight in pictures().weights().values()
    )
