"""Graphs to train through: the same numbers, weights that stay, changes that can be merged."""

from __future__ import annotations

import torch
from healing_models import tiny_program
from torch import nn

from compiler.frontends.torch_export import capture
from compiler.healing.frozen_graph import FrozenLinear, LowRank, WeightForms, frozen_graph, linear_weight
from compiler.patterns import aten

IDS = torch.randint(0, 48, (2, 9), generator=torch.Generator().manual_seed(5))


def test_it_computes_what_the_program_does_and_leaves_it_alone() -> None:
    program = tiny_program()
    before = program.text()
    module = frozen_graph(program, WeightForms(half=False))
    torch.testing.assert_close(module(IDS)[0], program.run(IDS)[0])
    assert not list(module.parameters())
    assert program.text() == before
    assert {node.name for node in program.graph.nodes} >= {node.name for node in module.graph.nodes}


def test_half_precision_is_close_and_makes_each_weight_once() -> None:
    program = tiny_program()
    forms = WeightForms(half=True)
    modules = [frozen_graph(program, forms) for _ in range(2)]
    found, expected = modules[0](IDS)[0], program.run(IDS)[0]
    assert found.dtype == torch.float32
    assert 1e-6 < float((found - expected).norm() / expected.norm()) < 2e-2
    pointers = [
        {layer.weight.data_ptr() for layer in module.modules() if isinstance(layer, FrozenLinear)} for module in modules
    ]
    assert pointers[0] == pointers[1]


def test_a_change_starts_at_nothing_and_merges_into_the_weight() -> None:
    program = tiny_program()
    name = "blocks.0.query.weight"
    change = LowRank(16, 16, 4, torch.Generator().manual_seed(0))
    module = frozen_graph(program, WeightForms(half=False), {name: change})
    torch.testing.assert_close(module(IDS)[0], program.run(IDS)[0])
    with torch.no_grad():
        change.up.normal_()
    changed = module(IDS)[0]
    changed.sum().backward()
    assert change.down.grad is not None
    assert {one for one, parameter in module.named_parameters()} == {
        f"{module_path(module)}.change.{x}" for x in ("up", "down")
    }
    weight = program.weight(name)
    expected = weight + change.up @ change.down
    torch.testing.assert_close(change.merged(weight, transposed=False), expected)
    torch.testing.assert_close(change.merged(weight.T, transposed=True), expected.T)
    merged = program.copy()
    merged.set_weight(name, expected)
    torch.testing.assert_close(merged.run(IDS)[0], changed.detach(), rtol=1e-4, atol=1e-5)


def module_path(module: nn.Module) -> str:
    """Where the one changed layer stands."""
    return next(
        name for name, one in module.named_modules() if isinstance(one, FrozenLinear) and one.change is not None
    )


class Transposed(nn.Module):
    """A weight that is stored as [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.stored = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.stored.T)


def test_weights_that_are_transposed_on_the_way_are_found() -> None:
    program = capture(Transposed(), {"x": torch.randn(2, 5)}, source="transposed")
    (node,) = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    assert linear_weight(node) == ("stored", True)
    x = torch.randn(2, 5)
    module = frozen_graph(program, WeightForms(half=False))
    assert any(isinstance(one, FrozenLinear) for one in module.modules())
    torch.testing.assert_close(module(x)[0], program.run(x)[0])
