"""Convolution chains: which convolutions share channels with nothing else, gates included."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rewrite_checks import captured
from torch import Tensor, nn

from compiler.sites import Refusal, Site, find_sites

Forward = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    """Convolutions to put together: between 4 and 8 channels, and those of a gate on 8."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.fourth = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 4, 8, 8]."""
        return self._forward(self, x)

    def gate(self, x: Tensor) -> Tensor:
        """A factor for each channel [batch, 8, 1, 1]."""
        return self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def chains(forward: Forward) -> list[Site | Refusal]:
    torch.manual_seed(0)
    return find_sites(captured(Layers(forward).eval(), x=torch.randn(2, 4, 8, 8)), ("convolution-chain",))


def lengths(forward: Forward) -> list[tuple[int, list[int]]]:
    """Of each chain, how many layers it has and how many gates are between each two."""
    found = [one for one in chains(forward) if isinstance(one, Site)]
    return [(len(one.bindings["layers"]), [len(gates) for gates in one.bindings["gates"]]) for one in found]


def test_three_layers_are_one_chain() -> None:
    assert lengths(lambda m, x: m.third(m.second(m.first(x).relu()).relu())) == [(3, [0, 0])]


def test_an_activation_that_reads_its_input_twice() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        wide = m.first(x)
        return m.third(wide * torch.clamp(wide + 3, 0, 6) / 6)

    assert lengths(forward) == [(2, [0])]


def test_a_gate_belongs_to_the_channels_that_it_weighs() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        wide = m.second(m.first(x).relu()).relu()
        return m.third(wide * m.gate(wide))

    assert lengths(forward) == [(3, [0, 1])]


def test_a_gate_made_of_something_else_ends_a_chain() -> None:
    """Its squeezed channels are a chain of their own."""

    def forward(m: Layers, x: Tensor) -> Tensor:
        wide = m.first(x)
        return m.third(m.second(wide) * m.gate(wide))

    assert lengths(forward) == [(2, [0])]


def test_a_residual_block_is_no_gate() -> None:
    """Its own channels are a chain, those of the sum stay."""

    def forward(m: Layers, x: Tensor) -> Tensor:
        wide = m.first(x)
        return m.third(wide + m.fourth(m.second(wide).relu()))

    assert lengths(forward) == [(2, [0])]


def test_values_that_others_read_end_a_chain() -> None:
    def summed(m: Layers, x: Tensor) -> Tensor:
        wide = m.first(x)
        return m.third(wide + m.second(wide))

    def flattened(m: Layers, x: Tensor) -> Tensor:
        wide = m.first(x)
        return m.third(wide).sum() + wide.flatten(1).sum()

    def given(m: Layers, x: Tensor) -> Tensor:
        return torch.cat([x, m.third(m.first(x) * x.mean(1, keepdim=True))])

    assert [lengths(one) for one in (summed, flattened, given)] == [[], [], []]


def test_channels_in_groups_are_refused() -> None:
    (found,) = chains(lambda m, x: m.third(m.grouped(m.first(x)).relu()))
    assert isinstance(found, Refusal)
    assert "groups of channels" in found.reason
