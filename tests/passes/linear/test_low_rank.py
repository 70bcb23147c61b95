"""low-rank: its two products, each way to choose a rank, the methods against formulas, rungs, refusals, runtimes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from rewrite_checks import context_of
from structured_checks import (
    assert_refuses_unusable_weights,
    assert_runs_in_onnx_runtime,
    error,
    flat_and_steep,
    grafted,
    inputs,
    products,
    refusals,
    two_layers,
)

from compiler.errors import CompilerError
from compiler.evidence import measured_gain
from compiler.evidence.data import Dataset
from compiler.evidence.fidelity import measure_fidelity, reference_outputs
from compiler.grafting import apply_graft
from compiler.options import build
from compiler.passes.linear.low_rank import LowRank
from compiler.passes.quantize import Quantize


def test_the_graph_before_and_after() -> None:
    program = two_layers()
    assert products(program) == [(36, 24), (24, 36)]
    after, result = grafted(LowRank(), program)
    assert result.changed == ("first", "second")
    assert products(after) == [(7, 24), (36, 7), (7, 36), (24, 7)]
    called = [str(node.target) for node in after.graph.nodes if node.op == "call_function"]
    assert called == ["aten.linear.default"] * 2 + ["aten.tanh.default"] + ["aten.linear.default"] * 2
    assert result.outcomes[0].note.startswith("rank 7, 49% of the numbers, error ")
    torch.testing.assert_close(after.weights()["first.low_rank.biases.0"], program.weight("first.bias"))


def test_pivoted_is_the_same_product_in_fewer_numbers_and_a_better_one_in_as_many() -> None:
    program = two_layers()
    thin, pivoted = (grafted(LowRank(weight_rank=12, pivoted=pivoted), program)[0] for pivoted in (False, True))
    (ours,), (theirs,) = pivoted.run(inputs()), thin.run(inputs())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert products(pivoted) == [(12, 12), (36, 12), (12, 36), (12, 12)]
    after, result = grafted(LowRank(ratio=0.75, pivoted=True), program)
    assert result.outcomes[0].note.startswith("rank 14, pivoted, 75% of the numbers, error ")
    assert error(after, program) < 0.7 * error(grafted(LowRank(ratio=0.75), program)[0], program)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_plain_is_the_truncated_decomposition(rank: int) -> None:
    program = two_layers()
    after, _ = grafted(LowRank(method="plain", weight_rank=rank), program)
    weights = after.weights()
    for name in ("first", "second"):
        down, up = (weights[f"{name}.low_rank.{part}_factor.0"] for part in ("first", "second"))
        u, s, v = torch.linalg.svd(program.weight(f"{name}.weight").detach().double())
        expected = u[:, :rank] * s[:rank] @ v[:rank]
        torch.testing.assert_close((up @ down).double(), expected, rtol=0, atol=1e-5)


def test_whitened_leaves_less_error_than_plain_and_fits_what_comes_before() -> None:
    program = two_layers()
    whitened, plain = (error(grafted(LowRank(method=method), program)[0], program) for method in ("whitened", "plain"))
    assert whitened < 0.5 * plain


def test_whitened_is_the_optimum_for_the_inputs_it_was_shown() -> None:
    """By gradient descent from the decomposition of W alone nothing better is found."""
    program, x = two_layers(), inputs()
    after, _ = grafted(LowRank(weight_rank=6, layers="first"), program)
    weights = after.weights()
    weight = program.weight("first.weight").detach()

    def cost(found: torch.Tensor) -> float:
        return float(((found - weight) @ x.T).square().sum())

    ours = cost((weights["first.low_rank.second_factor.0"] @ weights["first.low_rank.first_factor.0"]).detach())
    u, s, v = torch.linalg.svd(weight)
    up, down = (u[:, :6] * s[:6]).requires_grad_(), v[:6].clone().requires_grad_()
    optimizer = torch.optim.Adam([up, down], lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        ((up @ down - weight) @ x.T).square().sum().backward()
        optimizer.step()
    assert ours < 1.1 * cost((up @ down).detach())


@pytest.mark.parametrize("method", ["fisher", "whitened-fisher"])
def test_gradients_change_what_is_kept(method: str) -> None:
    program = two_layers()
    by_gradients, _ = grafted(LowRank(method=method), program)
    assert 0 < error(by_gradients, program) < 1
    other = {"fisher": "plain", "whitened-fisher": "whitened"}[method]
    without, _ = grafted(LowRank(method=other), program)
    name = "first.low_rank.second_factor.0"
    assert not torch.allclose(by_gradients.weights()[name], without.weights()[name], rtol=1e-2)


@pytest.mark.parametrize("energy", [0.4, 0.6])
def test_energy_keeps_just_enough_of_the_squared_singular_values(energy: float) -> None:
    program = two_layers()
    after, _ = grafted(LowRank(method="plain", energy=energy), program)
    for name in ("first", "second"):
        power = torch.linalg.svdvals(program.weight(f"{name}.weight")).square()
        rank = len(after.weights()[f"{name}.low_rank.first_factor.0"])
        assert power[:rank].sum() >= energy * power.sum() > power[: rank - 1].sum()


@pytest.mark.parametrize("allocation", ["energy", "welore"])
@pytest.mark.parametrize("method", ["plain", "whitened"])
def test_ranks_by_site_leave_as_many_numbers_in_all(allocation: str, method: str) -> None:
    program = two_layers()
    graft = LowRank(ratio=0.6, allocation=allocation, method=method)
    after, result = grafted(graft, program)
    dense = 2 * 36 * 24
    stored = sum(rows * columns for rows, columns in products(after))
    assert result.changed == ("first", "second")
    assert 0.6 * dense - 60 < stored <= 0.6 * dense
    ranks = [min(shape) for shape in products(after)[::2]]
    assert ranks[0] != ranks[1] or method == "plain"


def test_a_layer_that_an_allocation_keeps_whole_stays() -> None:
    program = two_layers()
    flat_and_steep(program, "first.weight", "second.weight")
    _, result = grafted(LowRank(ratio=0.75, allocation="energy", method="plain"), program)
    assert result.changed == ("second",)
    assert result.refusals[0].reason.endswith("are no fewer than the 864 of the dense weight")


def test_no_rank_is_worth_it_where_energy_is_spread() -> None:
    assert refusals(LowRank(method="plain", energy=0.99), two_layers())["first"] == (
        "1320 numbers are no fewer than the 864 of the dense weight"
    )


def test_a_budget_gives_back_half_and_then_all() -> None:
    program = two_layers()
    context = context_of(program)
    reference = reference_outputs(program, context.data.scoring)
    whole = measure_fidelity(grafted(LowRank(), program)[0], reference, context.data, context.data.scoring)
    context = dataclasses.replace(context, max_drop=0.5 * whole.drop)
    softened = {one.site: one for one in apply_graft(LowRank(), program, reference, context)[1].outcomes}
    assert "softened" in {one.state for one in softened.values()}
    assert any(one.note.startswith("rank 10, 69%") for one in softened.values() if one.state == "softened")
    nothing = dataclasses.replace(context, max_drop=0.0)
    assert {one.state for one in apply_graft(LowRank(), program, reference, nothing)[1].outcomes} == {"returned"}


def test_factors_can_be_quantized() -> None:
    program = two_layers()
    after, _ = grafted(LowRank(), program)
    _, result = grafted(Quantize(), after)
    assert result.changed == ()
    assert {one.reason for one in result.refusals} == {
        "168 weights are too few to be worth it",
        "252 weights are too few to be worth it",
    }
    assert len({site.name for site in result.refusals}) == 4


def test_without_calibration_data_nothing_is_weighed() -> None:
    program = two_layers()
    _, result = grafted(LowRank(), program, data=Dataset("none", (), ()))
    assert result.outcomes[0].note.endswith(", not weighed for want of calibration data")


def test_what_is_refused() -> None:
    assert_refuses_unusable_weights(LowRank())
    too_many = "1440 numbers are no fewer than the 864 of the dense weight"
    assert refusals(LowRank(weight_rank=24), two_layers()) == {"first": too_many, "second": too_many}
    too_few = "there are too few numbers for blocks of rank 1 in a weight of 36 x 24"
    assert refusals(LowRank(ratio=0.05), two_layers())["first"] == too_few
    after, _ = grafted(LowRank(), two_layers())
    assert set(refusals(LowRank(), after).values()) == {"its weight is a factor of a structured layer already"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ratio": "1.5"}, "ratio=1.5 is not between 0 and 1"),
        ({"energy": "0"}, "energy=0 is not between 0 and 1"),
        ({"weight_rank": "0"}, "weight_rank=0 is less than 1"),
        ({"weight_rank": "4", "energy": "0.5"}, "weight_rank=4 and energy=0.5: give one of them"),
        ({"weight_rank": "4", "allocation": "energy"}, "allocation=energy shares out the numbers that ratio leaves"),
        ({"pays_at": "0"}, "pays_at=0 is not from 1 to"),
        ({"method": "best"}, "none of plain, whitened, fisher, whitened-fisher"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(CompilerError, match=problem):
        build(LowRank, options)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "bert", "vit", "gpt2"])
def test_models_in_onnx_runtime(model: str, tmp_path: Path) -> None:
    result = assert_runs_in_onnx_runtime(LowRank(), model, tmp_path)
    assert len(result.changed) == {"llama": 15, "bert": 12, "vit": 13, "gpt2": 8}[model]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_pivoted_in_onnx_runtime(model: str, tmp_path: Path) -> None:
    result = assert_runs_in_onnx_runtime(LowRank(ratio=0.8, pivoted=True), model, tmp_path)
    assert len(result.changed) == {"llama": 15, "bert": 12}[model]


def test_layers_whose_stand_ins_are_no_faster_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {"first": 1.5, "second": 0.8}
    monkeypatch.setattr(measured_gain, "measured_gain", lambda program, site, *rest: gains[site.name])
    _, result = grafted(LowRank(pays_at=1), two_layers())
    assert result.changed == ("first",)
    assert [one.reason for one in result.refusals] == [
        "it would be 0.80 times as fast as what is there at 1 token a call"
    ]
    assert grafted(LowRank(), two_layers())[1].changed == ("first", "second")
