"""The framework measures grafts and gives sites back until the budget holds: worst first, gentler before originals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.evidence.data import load_dataset
from compiler.frontends.torch_export import capture
from compiler.pipeline import PassRecord, Pipeline
from compiler.program import Program
from compiler.rewriting import Graft, PassContext, PassResult, Replacement, Rewrite
from compiler.sites import Refusal, Site
from compiler.target import Target


class Chain(nn.Module):
    """Linear sites a, b, c in a row with tanh between; c is tiny."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)
        self.b = nn.Linear(16, 16)
        self.c = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Scaled(nn.Module):
    """A linear layer whose weight is off by a factor."""

    def __init__(self, weight: Tensor, bias: Tensor, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight * factor)
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Distort(Graft):
    """Multiplies weights by a factor per site; the gentler rung is a tenth as wrong."""

    name = "distort"
    site_kinds = ("linear",)

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        if site.bindings["out_features"] < 4:
            return Refusal("too small to be worth it", str(site.output))
        wrong = {"a": 0.05, "b": 0.8}[site.name]
        weight, bias = program.weight(site.bindings["weight"]), program.weight(site.bindings["bias"])

        def make(wrongness: float) -> Callable[[], Replacement]:
            return lambda: Replacement(Scaled(weight, bias, 1 - wrongness), f"off by {wrongness:g}")

        first = make(wrong)()
        first.gentler = make(wrong / 10)
        return first


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(Chain(), {"x": torch.randn(2, 16)}, source="chain")


def graft(program: Program, max_drop: float | None) -> tuple[Program, PassRecord]:
    context = PassContext(Target.parse("cpu"), load_dataset(None, program), max_drop=max_drop)
    after, _, records = Pipeline([Distort()], context).run(program)
    return after, records[0]


def states(record: PassRecord) -> dict[str, str]:
    return {outcome.site: outcome.state for outcome in record.result.outcomes}


def test_without_a_budget_every_site_is_grafted(program: Program) -> None:
    before = program.text()
    after, record = graft(program, None)
    assert states(record) == {"a": "grafted", "b": "grafted", "c": "refused"}
    assert record.result.changed == ("a", "b")
    assert "@a.distort.weight" in after.text()
    assert "@c.weight" in after.text()
    assert program.text() == before


def test_the_stand_ins_compute_what_the_graft_said(program: Program) -> None:
    after, _ = graft(program, None)
    weights = {name: tensor.detach() for name, tensor in program.weights().items()}
    x = torch.randn(5, 16)
    hidden = torch.tanh(x @ weights["a.weight"].T * 0.95 + weights["a.bias"])
    hidden = torch.tanh(hidden @ weights["b.weight"].T * 0.2 + weights["b.bias"])
    expected = hidden @ weights["c.weight"].T + weights["c.bias"]
    torch.testing.assert_close(after.run(x)[0], expected, rtol=1e-5, atol=1e-6)


def test_the_worst_site_is_softened_first(program: Program) -> None:
    loose = graft(program, None)[1].evidence.fidelity
    assert loose is not None
    after, record = graft(program, loose.drop * 0.5)
    assert states(record) == {"a": "grafted", "b": "softened", "c": "refused"}
    assert record.evidence.fidelity is not None
    assert record.evidence.fidelity.drop <= loose.drop * 0.5
    drops = {outcome.site: outcome.drop for outcome in record.result.outcomes}
    assert drops["b"] > drops["a"] > 0
    torch.testing.assert_close(after.weight("b.distort_1.weight"), program.weight("b.weight") * 0.92)


def test_a_budget_of_nothing_gives_everything_back(program: Program) -> None:
    after, record = graft(program, 0.0)
    assert states(record) == {"a": "returned", "b": "returned", "c": "refused"}
    assert record.result.changed == ()
    assert after.text() == program.text()


@dataclass(frozen=True)
class Negate(Rewrite):
    """Claims to be exact and is not."""

    name = "negate"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        returned = program.output_node().args[0][0]
        with program.graph.inserting_after(returned):
            negated = program.graph.call_function(torch.ops.aten.neg.default, (returned,))
        program.output_node().args = ((negated,),)
        return PassResult(changed=("output",))


def test_a_rewrite_that_is_not_exact_is_caught(program: Program) -> None:
    context = PassContext(Target.parse("cpu"), load_dataset(None, program))
    with pytest.raises(CompilerError, match="checking that negate is exact: output output moved by"):
        Pipeline([Negate()], context).run(program)
