"""What masks allow, against the mask that the nodes really compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from site_checks import canonical
from torch import Tensor, nn

from compiler.sites.masks import Mask, describe_mask

LOWEST = torch.finfo(torch.float32).min


def positions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of tokens [tokens, 1] and keys [tokens]."""
    count = torch.arange(x.shape[0])
    return count[:, None], count


def described(build: Callable[[Tensor], Tensor]) -> tuple[Mask, Tensor]:
    """What is said of the mask that `build` makes for x [tokens], and what it is for 6 tokens."""

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return build(x)

    program = canonical(Module(), x=torch.randn(6))
    (result,) = program.output_node().args[0]
    (value,) = program.run(torch.randn(6))
    return describe_mask(result), value


def causal(x: Tensor) -> Tensor:
    query, key = positions(x)
    return key <= query


def window(x: Tensor) -> Tensor:
    query, key = positions(x)
    return causal(x) & (key > query - 3)


def band(x: Tensor) -> Tensor:
    query, key = positions(x)
    return (query - key).abs() <= 2


def reversed_order(x: Tensor) -> Tensor:
    query, key = positions(x)
    return torch.ge(query, key)[None, None].expand(1, 1, -1, -1)


def shifted(x: Tensor) -> Tensor:
    query, key = positions(x)
    return key < query + 2


def triangle(x: Tensor) -> Tensor:
    return torch.ones(x.shape[0], x.shape[0], dtype=torch.bool).tril()


def additive_triangle(x: Tensor) -> Tensor:
    return torch.full((x.shape[0], x.shape[0]), -torch.inf).triu(1)


def additive_choice(x: Tensor) -> Tensor:
    return torch.where(causal(x), 0.0, LOWEST)


def two_additive(x: Tensor) -> Tensor:
    return additive_choice(x) + torch.where(window(x), 0.0, -torch.inf)


def always(x: Tensor) -> Tensor:
    query, key = positions(x)
    return (query >= 0) & (key > -1)


def packed_positions(x: Tensor) -> Tensor:
    """How transformers tells packed sequences apart when there is one sequence."""
    count = torch.arange(x.shape[0])[None]
    sequence = (torch.diff(count, prepend=count[:, :1] - 1, dim=-1) != 1).cumsum(-1)
    rows = torch.zeros(1, dtype=torch.int64)[:, None]
    query, key = positions(x)
    return (sequence[rows, query] == sequence[rows, key]) & (count[rows, key] <= count[rows, query])


def packed_positions_after_onnx(x: Tensor) -> Tensor:
    """The same as operators of ONNX say it: steps from slices, lookups by indices that were stacked."""
    count = torch.arange(x.shape[0])[None].repeat(1, 1)
    longer = torch.cat([count[:, :1] - 1, count], -1)
    is_step = torch.eq(longer[:, 1:] - longer[:, : x.shape[0]], 1)
    sequence = torch.logical_not(is_step).to(torch.int64).cumsum(-1)
    query, key = positions(x)

    def look_up(table: Tensor, index: Tensor) -> Tensor:
        stacked = torch.cat([torch.zeros_like(index)[..., None], index[..., None]], -1)
        return table[stacked.unbind(-1)]

    same = look_up(sequence, query) == look_up(sequence, key[None])
    return same & (look_up(count, key[None]) <= look_up(count, query))


@pytest.mark.parametrize(
    ("build", "mask"),
    [
        (causal, Mask(highest=0)),
        (window, Mask(-2, 0)),
        (band, Mask(-2, 2)),
        (reversed_order, Mask(highest=0)),
        (shifted, Mask(highest=1)),
        (triangle, Mask(highest=0)),
        (additive_triangle, Mask(highest=0)),
        (additive_choice, Mask(highest=0)),
        (two_additive, Mask(-2, 0)),
        (always, Mask()),
        (packed_positions, Mask(highest=0)),
        (packed_positions_after_onnx, Mask(highest=0)),
        (lambda x: torch.zeros(x.shape[0], x.shape[0]), Mask()),
        (lambda x: torch.ones(x.shape[0], x.shape[0], dtype=torch.bool), Mask()),
    ],
)
def test_index_arithmetic_is_understood(build: Callable[[Tensor], Tensor], mask: Mask):
    found, value = described(build)
    assert found == mask
    tokens = torch.arange(6)
    distance = tokens[None, :] - tokens[:, None]
    allowed = torch.ones(6, 6, dtype=torch.bool)
    if mask.lowest is not None:
        allowed &= distance >= mask.lowest
    if mask.highest is not None:
        allowed &= distance <= mask.highest
    really = value if value.dtype == torch.bool else value > LOWEST
    assert torch.equal(really.expand(*really.shape[:-2], 6, 6).reshape(6, 6), allowed)


@pytest.mark.parametrize(
    ("constant", "mask"),
    [
        (torch.ones(1, 1, 6, 1, dtype=torch.bool), Mask()),
        (torch.ones(6, 6, dtype=torch.bool).tril(), Mask(highest=0)),
        (torch.zeros(6, 6), Mask()),
        (torch.full((6, 6), LOWEST).triu(1), Mask(highest=0)),
        (torch.ones(6, 6, dtype=torch.bool).tril(-1), Mask(padding=True)),
        (torch.ones(6, 6).tril(), Mask(bias=True)),
        ((torch.arange(6) > 2)[:, None], Mask(padding=True)),
    ],
)
def test_constants_that_folding_left_are_looked_at(constant: Tensor, mask: Mask):
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", constant)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, self.mask.expand(*constant.shape[:-2], 6, 6)

    program = canonical(Module(), x=torch.randn(2))
    assert describe_mask(program.output_node().args[0][1]) == mask


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        pytest.param(lambda x: causal(x) & (x > 0), "causal+padding", id="padding beside causal"),
        pytest.param(lambda x: (x > 0)[None, :], "padding", id="padding"),
        pytest.param(lambda x: additive_choice(x) + x, "causal+padding+bias", id="numbers of an input are added"),
        pytest.param(lambda x: torch.where(causal(x), 0.0, -1e4), "bias", id="not low enough to be forbidden"),
        pytest.param(lambda x: ~causal(x), "padding", id="negation is not followed"),
        pytest.param(lambda x: torch.arange(x.shape[0]) <= torch.arange(1)[:, None], "padding", id="one row for all"),
        pytest.param(lambda x: positions(x)[1] * 2 <= positions(x)[0], "padding", id="index times two"),
        pytest.param(lambda x: positions(x)[1] <= 3, "padding", id="a fixed key"),
        pytest.param(lambda x: torch.cos(positions(x)[0] * positions(x)[1]), "bias", id="computed numbers"),
    ],
)
def test_what_is_not_proven_is_not_claimed(build: Callable[[Tensor], Tensor], kind: str):
    found, _ = described(build)
    assert found.kind == kind
    assert not found.always_true
    assert not found.only_causal
