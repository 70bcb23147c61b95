"""prune: where the zeros are, which weights are compared, healing under the mask, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from rewrite_checks import captured, context_of
from structured_checks import assert_refuses_unusable_weights, error, grafted, inputs, refusals, two_layers
from torch import Tensor, nn

import compiler.passes.pruning.prune as module_under_test
from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.errors import CompilerError
from compiler.evidence.data import Dataset
from compiler.options import build
from compiler.passes.pruning.prune import Prune
from compiler.program import Program
from compiler.pruning.masked_linear import MaskedLinear
from compiler.rewriting import Replacement
from compiler.sites import Site, find_sites


@pytest.fixture(autouse=True)
def small_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of any size are worth it."""
    monkeypatch.setattr(module_under_test, "SMALLEST_SITE", 1)


def weights(program: Program) -> list[Tensor]:
    """The matrices of linear layers in order."""
    found = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    return [program.weight(node.args[1]).detach() for node in found]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_half_of_the_weights_are_zero(method: str) -> None:
    after, result = grafted(Prune(method=method), two_layers())
    assert [float((one == 0).float().mean()) for one in weights(after)] == [0.5, 0.5]
    assert result.outcomes[0].note == f"50% zeros, {method}"


def test_two_of_four_in_a_row() -> None:
    after, _ = grafted(Prune(pattern="2-of-4"), two_layers())
    for one in weights(after):
        assert bool(((one.reshape(len(one), -1, 4) != 0).sum(-1) == 2).all())


def test_what_knows_more_of_the_data_moves_outputs_less() -> None:
    program = two_layers()
    moved = [error(grafted(Prune(method=one), program)[0], program) for one in ("magnitude", "wanda", "sparsegpt")]
    assert moved[2] < 0.7 * moved[1] < 0.7 * moved[0]


def test_weights_that_are_compared_with_each_other() -> None:
    first = two_layers().weight("first.weight").detach()
    by_layer = weights(grafted(Prune(method="magnitude"), two_layers())[0])[0]
    assert torch.equal(by_layer != 0, first.abs() > first.abs().flatten().sort().values[first.numel() // 2 - 1])
    by_row = weights(grafted(Prune(method="magnitude", compared="row"), two_layers())[0])[0]
    assert (by_row != 0).sum(1).tolist() == [12] * 36


def test_without_data_the_size_decides() -> None:
    program = two_layers()
    context = dataclasses.replace(context_of(program), data=Dataset("none", (), ()))
    site = find_sites(program, ("linear",))[0]
    assert isinstance(site, Site)
    found = Prune(method="wanda").propose(site, program, context)
    assert isinstance(found, Replacement)
    assert found.note == "50% zeros, wanda, by size for want of calibration data"


def test_a_mask_over_what_learns() -> None:
    dense, stays = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [True, True]])
    layer = MaskedLinear(dense * stays, stays, None, dense)
    one = torch.eye(2)
    assert torch.equal(layer(one).T, dense * stays)
    layer.learn()
    for done, hidden in ((0.0, 2.0), (0.25, 1.5), (1.0, 0.0)):
        layer.fade(done)
        assert layer(one).T.tolist() == [[1.0, hidden], [3.0, 4.0]]
    layer.settle()
    assert layer.weight.tolist() == [[1.0, 0.0], [3.0, 4.0]]
    assert layer.stays is None
    without = MaskedLinear(dense * stays, stays, None)
    without.learn()
    without.fade(0.0)
    assert torch.equal(without(one).T, dense * stays)


def test_the_budget_gives_back_half_of_the_zeros() -> None:
    program = two_layers()
    site = find_sites(program, ("linear",))[0]
    assert isinstance(site, Site)
    context = dataclasses.replace(context_of(program), max_drop=0.1)
    rung = Prune(sparsity=0.6).propose(site, program, context)
    shares = []
    while isinstance(rung, Replacement):
        shares.append(round(float((rung.module.get_parameter("weight") == 0).float().mean()), 2))
        if rung.gentler is None:
            break
        rung = rung.gentler()
    assert shares == [0.6, 0.3, 0.15]


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = two_layers()
    context = dataclasses.replace(context_of(program), backend=OnnxRuntime())
    reason = "its backend has no kernel for zeros: neither smaller nor faster, which --allow-simulated takes"
    assert set(refusals(Prune(), program, context).values()) == {reason}
    assert refusals(Prune(), program, dataclasses.replace(context, allow_simulated=True)) == {}
    assert tuple(Prune.candidates("linear")) == ()
    assert_refuses_unusable_weights(Prune())
    monkeypatch.setattr(module_under_test, "SMALLEST_SITE", 1000)
    assert set(refusals(Prune(), program).values()) == {"864 weights are too few to be worth it"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": "1"}, "sparsity=1 is not between 0 and 1"),
        ({"pattern": "2:4"}, "pattern=2:4 is not as 2-of-4"),
        ({"pattern": "2-of-4", "compared": "row"}, "says nothing beside"),
        ({"compared": "row"}, "sparsegpt compares over the rows"),
    ],
)
def test_options_that_fit_nothing(options: dict[str, str], message: str) -> None:
    with pytest.raises(CompilerError, match=message):
        build(Prune, options)


def test_a_layer_that_is_read_by_rows_keeps_its_shape() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(24, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    program = captured(One().eval(), x=inputs(20))
    before = program.weight("layer.weight").detach().clone()
    after, _ = grafted(Prune(), program)
    assert torch.equal(program.weight("layer.weight"), before)
    assert int((weights(after)[0] == 0).sum()) == 12
