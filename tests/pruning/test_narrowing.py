"""What operators make of missing units: the small graph against the whole one with the same positions taken out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rewrite_checks import captured
from torch import Tensor, fx, nn

from compiler.patterns import aten
from compiler.pruning.narrowing import Kept, NarrowingError, NarrowLayer, narrowed
from compiler.pruning.rules import reshaped_kept

WIDTH, UNITS = 6, 8
LEFT = (0, 1, 4, 5)
"""Outputs of the first layer that stay: two pairs of four."""


@pytest.mark.parametrize(
    ("source", "kept", "target", "expected"),
    [
        ((3, 8), Kept(1, (0, 1, 4, 5)), (3, 4, 2), Kept(1, (0, 2))),
        ((3, 8), Kept(1, (0, 2, 4, 6)), (3, 4, 2), Kept(2, (0,))),
        ((3, 4, 2), Kept(1, (1, 3)), (3, 8), Kept(1, (2, 3, 6, 7))),
        ((3, 4, 2), Kept(2, (1,)), (3, 8), Kept(1, (1, 3, 5, 7))),
        ((3, 4, 2), Kept(2, (1,)), (12, 2), Kept(1, (1,))),
        ((3, 4, 2), Kept(1, (0, 3)), (3, 4, 1, 2), Kept(1, (0, 3))),
        ((8, 3), Kept(0, (2, 3)), (2, 4, 3), None),
        ((3, 8), Kept(1, (0, 1, 2)), (3, 4, 2), None),
    ],
)
def test_reshapes(source: tuple[int, ...], kept: Kept, target: tuple[int, ...], expected: Kept | None) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(aten.reshape.default, (x, list(target)))
    whole = torch.arange(24).reshape(source)
    x.meta["val"], node.meta["val"] = whole, whole.reshape(target)
    if expected is None:
        with pytest.raises(NarrowingError, match="units do not stay together"):
            reshaped_kept(node, kept)
        return
    found = reshaped_kept(node, kept)
    assert found == expected
    small = whole.index_select(kept.dim, torch.tensor(kept.positions))
    assert torch.equal(
        small.flatten(), whole.reshape(target).index_select(found.dim, torch.tensor(found.positions)).flatten()
    )


class Between(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(WIDTH, UNITS), nn.Linear(UNITS, WIDTH), between
        self.scale = nn.Parameter(torch.randn(UNITS))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 6] to the same."""
        return self.second(self.between(self.first(x) * self.scale))


def small_and_masked(module: Between) -> tuple[Tensor, Tensor]:
    """What the small graph gives, and the whole one with zeros in the columns of what is missing."""
    torch.manual_seed(0)
    for one in module.parameters():
        nn.init.normal_(one)
    x = torch.randn(5, WIDTH)
    program = captured(module.eval(), x=x)
    first, second = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    weights = {name: one.detach() for name, one in module.state_dict().items()}
    left = list(LEFT)
    layers = {
        first: NarrowLayer("first", weights["first.weight"][left], weights["first.bias"][left], LEFT),
        second: NarrowLayer("second", weights["second.weight"][:, left], weights["second.bias"]),
    }
    (given,) = program.placeholders()
    part = narrowed(program, list(program.graph.nodes), [given], second, layers)
    with torch.no_grad():
        found: Tensor = part(x)
        module.second.weight[:, [unit for unit in range(UNITS) if unit not in LEFT]] = 0
        return found, module(x)


@pytest.mark.parametrize(
    "between",
    [
        torch.tanh,
        lambda h: h + torch.linspace(0, 1, UNITS),
        lambda h: h.reshape(-1, 4, 2).transpose(1, 2).exp().transpose(1, 2).flatten(1),
        lambda h: torch.softmax(h.reshape(-1, 4, 2), -1).reshape(-1, UNITS),
        lambda h: torch.cat([-h.reshape(-1, 4, 2)[..., 1:], h.reshape(-1, 4, 2)[..., :1]], -1).flatten(1),
        lambda h: h.unsqueeze(0).expand(1, -1, UNITS).mul(2).squeeze(0),
        lambda h: nn.functional.layer_norm(h.unflatten(-1, (4, 2)), (2,)).flatten(-2),
        lambda h: (h.unflatten(-1, (4, 2)) / h.unflatten(-1, (4, 2)).square().mean(-1, keepdim=True)).flatten(-2),
        lambda h: h.expand(3, -1, UNITS).exp().mean(0),
        lambda h: h.to(torch.float64).sigmoid().to(torch.float32),
    ],
    ids=["unary", "constant", "moved", "softmax", "turned", "expanded", "norm", "mean square", "mean", "cast"],
)
def test_operators_hand_on_what_is_missing(between: Callable[[Tensor], Tensor]) -> None:
    found, expected = small_and_masked(Between(between))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda h: torch.softmax(h, -1), "over the units themselves"),
        (lambda h: nn.functional.layer_norm(h, (UNITS,)), "over the units themselves"),
        (lambda h: nn.functional.layer_norm(h.unflatten(-1, (4, 2)), (4, 2)).flatten(-2), "over the units themselves"),
        (lambda h: nn.functional.rms_norm(h.unflatten(-1, (4, 2)), (4, 2)).flatten(-2), "over the units themselves"),
        (lambda h: h - h.mean(-1, keepdim=True), "over the units themselves"),
        (lambda h: torch.cat([h[:, 2:4], h[:, :6]], -1), "none of the units that it takes are left"),
        (lambda h: h + h.flip(-1), "has no rule for fewer units"),
        (lambda h: h.cumsum(-1), "has no rule for fewer units"),
        (lambda h: h.roll(1, -1), "has no rule for fewer units"),
    ],
    ids=["softmax", "norm", "norm over two", "RMS norm over two", "mean", "slice", "flip", "cumsum", "roll"],
)
def test_what_mixes_units_is_refused(between: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(NarrowingError, match=reason):
        small_and_masked(Between(between))


def test_units_that_would_be_missing_outside_are_refused() -> None:
    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(WIDTH, UNITS)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.first(x))

    program = captured(Open().eval(), x=torch.randn(5, WIDTH))
    (first,) = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    (given,) = program.placeholders()
    layer = NarrowLayer("first", torch.randn(4, WIDTH), None, LEFT)
    tanh = next(iter(first.users))
    with pytest.raises(NarrowingError, match="would be missing"):
        narrowed(program, [first, tanh], [given], tanh, {first: layer})
