"""The stand-in module: the same numbers as its dense weight, by blocks and batched, and while it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compiler.structured.modules import FACTOR, LEARNING_SIZE, StructuredLinear, wants_batches
from compiler.structured.projection import project
from compiler.structured.structure import Structure

SHAPES = [
    Structure.of(6, 9, 1, 1, 2),
    Structure.of(12, 8, 1, 4, 1),
    Structure.of(12, 8, 4, 1, 1),
    Structure.of(12, 8, 4, 2, 1),
    Structure.of(13, 11, 3, 2, 2),
    Structure.of(16, 32, 8, 8, 1),
]


def made(structure: Structure, batched: bool | None, *, bias: bool = True) -> tuple[StructuredLinear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = sum(structure.out_sizes), sum(structure.in_sizes)
    weight, added = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    factors = project(weight, structure)
    module = StructuredLinear(factors, added if bias else None, torch.float64, batched)
    return module, factors.dense(), added.double() if bias else torch.zeros(outputs, dtype=torch.float64)


@pytest.mark.parametrize("structure", SHAPES, ids=str)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_its_dense_weight(structure: Structure, batched: bool, bias: bool) -> None:
    if batched and structure is SHAPES[4]:
        with pytest.raises(ValueError, match=r"blocks of sizes \(6, 5\) and \(5, 4, 4\) differ"):
            made(structure, batched)
        return
    module, dense, added = made(structure, batched, bias=bias)
    for shape in ((5,), (2, 3), (), (2, 1, 2)):
        x = torch.randn(*shape, dense.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(module(x), x @ dense.T + added)
    stored = sum(one.numel() for one in module.parameters())
    assert stored == structure.parameter_count + bias * len(dense)


@pytest.mark.parametrize("batched", [False, True])
def test_learning_moves_every_factor_by_its_part(batched: bool) -> None:
    module, _, _ = made(Structure.of(16, 32, 8, 8, 1), batched)
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, stored = module(x), {name: one.detach().clone() for name, one in module.named_parameters()}
    module.learn()
    torch.testing.assert_close(module(x), before)
    for name, one in module.named_parameters():
        if FACTOR.search(name):
            assert float(one.detach().square().mean()) == pytest.approx(LEARNING_SIZE**2)
    module.settle()
    for name, one in module.named_parameters():
        torch.testing.assert_close(one.detach(), stored[name])
    torch.testing.assert_close(module(x), before)
    module.settle()
    torch.testing.assert_close(module(x), before)


def test_what_is_batched() -> None:
    assert wants_batches(Structure.of(64, 64, 8, 8, 1))
    assert not wants_batches(Structure.of(64, 64, 4, 4, 1))
    assert not wants_batches(Structure.of(65, 64, 8, 8, 1))
    assert not wants_batches(Structure.of(64, 64, 1, 8, 1))


def test_names_of_factors() -> None:
    module, _, _ = made(Structure.of(12, 8, 4, 2, 1), None)
    names = [name for name, _ in module.named_parameters()]
    assert [name for name in names if FACTOR.search(name)] == [name for name in names if not name.startswith("biases")]
    assert FACTOR.search("layers.0.mlp.up_proj.monarch.first_factor.3")
    assert not FACTOR.search("layers.0.first_factor.weight")
