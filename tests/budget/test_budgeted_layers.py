"""A budget on residual layers: which of them can go at all, and which of them goes."""

from __future__ import annotations

import functools

import pytest
import torch
from budgeted_models import calibrated
from rewrite_checks import captured
from torch import Tensor, nn

from compiler.budget.chosen_mix import STAYS_WHOLE
from compiler.budget.judging import channel_dim
from compiler.budget.mix import BudgetedMix
from compiler.budget.places import find_places
from compiler.evidence.cost import flops
from compiler.grafting import apply_graft
from compiler.passes.pruning.prune_layers import PruneLayers
from compiler.passes.pruning.prune_neurons import PruneNeurons
from compiler.program import Program
from compiler.rewriting import Graft, PassContext

WIDTH = 12
LAYERS = [f"blocks.{index}.convolutions" for index in range(4)]
"""What the layers of `Pictures` are called."""


class Block(nn.Module):
    """x and what convolutions make of it: two with a bend between them, or one."""

    def __init__(self, size: float, layers: int = 2) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(layers))
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 12, height, width] to the same."""
        hidden = x
        for convolution in self.convolutions:
            hidden = convolution(torch.relu(hidden))
        return x + self.size * hidden


class Pictures(nn.Module):
    """Four residual layers, one of which hardly counts, and one of which is a single convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList([Block(1.0), Block(0.02), Block(1.0, layers=1), Block(0.5)])

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 3, 8, 8] to [batch, 12]."""
        hidden = self.stem(x)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.mean((2, 3))


@functools.cache
def pictures() -> Program:
    """The model, which no test changes."""
    torch.manual_seed(0)
    return captured(Pictures().eval(), x=torch.randn(2, 3, 8, 8))


def context(*grafts: type[Graft]) -> PassContext:
    """Calibrated on random pictures, lowered with ONNX Runtime."""
    return calibrated(pictures(), (32, 3, 8, 8), *grafts)


def test_every_residual_layer_is_a_place_of_its_own_name() -> None:
    places = find_places(pictures())
    layers = [place for place in places if place.kind == "residual-layer"]
    assert [place.name for place in layers] == [f"{name} (residual layer)" for name in LAYERS]
    assert [len(place.covers) for place in layers] == [2, 2, 1, 2]
    assert len({place.name for place in places}) == len(places)


class Masked(nn.Module):
    """A residual layer that reads a mask beside what it adds to, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x and mask [batch, 12] to the same."""
        x = x + mask * self.first(x)
        return x + self.second(torch.relu(x))


def test_layers_that_read_more_than_they_add_to_are_none() -> None:
    program = captured(Masked().eval(), x=torch.randn(2, WIDTH), mask=torch.ones(2, WIDTH))
    layers = [place for place in find_places(program) if place.kind == "residual-layer"]
    assert [place.name for place in layers] == ["second (residual layer)"]
    assert not any(place.is_part for place in layers)


class Heard(nn.Module):
    """A residual layer of sounds [batch, channels, time], and one that convolves rows [batch, time, channels]."""

    def __init__(self) -> None:
        super().__init__()
        self.sound, self.rows = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 12, 20] to [batch, 20, 12]."""
        x = (x + self.sound(torch.relu(x))).transpose(1, 2)
        return x + self.rows(x.transpose(1, 2)).transpose(1, 2)


def test_channels_are_where_the_convolution_of_a_layer_has_them() -> None:
    program = captured(Heard().eval(), x=torch.randn(2, WIDTH, 20))
    dims = {place.name: channel_dim(place.sites[0]) for place in find_places(program) if not place.is_part}
    assert dims == {"sound (residual layer)": 1, "rows (residual layer)": -1}


@pytest.mark.parametrize(("share", "gone"), [(0.75, [1]), (0.5, [1, 3])])
def test_the_layers_that_count_least_go(share: float, gone: list[int]) -> None:
    surroundings = context(PruneLayers)
    chosen, record = BudgetedMix(limits=(f"flops={share}",)).planned(pictures(), surroundings)
    assert record is not None
    assert [place.site for place in record.places if place.choice] == [
        f"{LAYERS[one]} (residual layer)" for one in gone
    ]
    after, result = apply_graft(chosen, pictures(), (), surroundings)
    assert len(result.changed) == len(gone)
    stay = {one.name for one in result.refusals if one.reason == STAYS_WHOLE}
    assert stay == {name for index, name in enumerate(LAYERS) if index not in gone}
    assert flops(after) <= share * flops(pictures())
    torch.manual_seed(0)
    module = Pictures().eval()
    module.blocks = nn.ModuleList([one for index, one in enumerate(module.blocks) if index not in gone])
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(after.run(x)[0], module(x))


def test_a_layer_goes_or_its_channels_do_not_both() -> None:
    surroundings = context(PruneLayers, PruneNeurons)
    chosen, record = BudgetedMix(limits=("flops=0.68",)).planned(pictures(), surroundings)
    assert record is not None
    (limit,) = record.limits
    assert limit.measured <= limit.allowed
    taken = [place for place in record.places if place.choice]
    assert {place.choice.partition(":")[0] for place in taken} == {"prune-layers", "prune-neurons"}
    after, result = apply_graft(chosen, pictures(), (), surroundings)
    assert len(result.changed) == len(taken)
    assert after.run(torch.randn(2, 3, 8, 8))[0].shape == (2, WIDTH)
