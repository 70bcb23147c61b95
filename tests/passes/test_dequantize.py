"""dequantize: every quantized form becomes the float one with just the weights that the codes stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rewrite_checks import captured, context_of
from torch import Tensor, nn

from compiler.grafting import apply_graft
from compiler.ops.dequantize_linear import dequantize_linear
from compiler.ops.fake_quantize_linear import fake_quantize_linear
from compiler.passes.dequantize import Dequantize
from compiler.passes.fold_constants import FoldConstants
from compiler.passes.quantize import Quantize
from compiler.pipeline import Pipeline
from compiler.program import Program
from compiler.rewriting import PassResult
from compiler.sites import Refusal, Site, find_sites


class Small(nn.Module):
    """A table, a layer with a bias, one without."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 40)
        self.first, self.second = nn.Linear(40, 72), nn.Linear(72, 33, bias=False)

    def forward(self, indices: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.table(indices))))


class Rounded(nn.Module):
    """A convolution whose input is rounded and whose weight is stored as codes: the form of QDQ models."""

    codes: Tensor
    scales: Tensor
    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(-128, 128, (8, 3, 3, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(8) / 100)
        self.register_buffer("step", torch.tensor(0.05))

    def forward(self, x: Tensor) -> Tensor:
        x = fake_quantize_linear(x, self.step, None, "int8", 1, 0, True)
        weight = dequantize_linear(self.codes, self.scales, None, "int8", 0, 0)
        return nn.functional.conv2d(x, weight)


def small(**options: Any) -> Program:
    torch.manual_seed(0)
    program = captured(Small().eval(), indices=torch.randint(0, 50, (4, 6)))
    after, _ = apply_graft(Quantize(**options), program, (), context_of(program))
    return after


def rounded() -> Program:
    torch.manual_seed(0)
    return captured(Rounded().eval(), x=torch.randn(2, 3, 8, 8))


def dequantized(program: Program) -> tuple[Program, PassResult]:
    return apply_graft(Dequantize(), program, (), context_of(program))


def operators(program: Program) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


FORMS = {
    "dynamic": {"activations": "dynamic", "embeddings": 8},
    "rows": {"activations": "rows"},
    "8 bits in blocks": {"activations": "none", "group": 32},
    "4 bits in blocks": {"bits": 4, "group": 16, "embeddings": 4},
}


@pytest.mark.parametrize("form", FORMS)
def test_layers_and_tables_become_floats(form: str) -> None:
    program = small(**FORMS[form])
    after, result = dequantized(program)
    assert len(result.changed) == 3
    assert not any("regraft" in name for name in operators(after))
    kinds = [site.kind for site in find_sites(after, ("linear", "embedding", "quantized")) if isinstance(site, Site)]
    assert kinds == ["embedding", "linear", "linear"]
    rounded_inputs = "activations" in FORMS[form] and FORMS[form]["activations"] != "none"
    longer = torch.randint(0, 50, (7, 6))
    ours, theirs = after.run(longer)[0], program.run(longer)[0]
    assert float((ours - theirs).norm() / theirs.norm()) < (0.02 if rounded_inputs else 1e-6)


def test_the_graph_before_and_after() -> None:
    before = rounded()
    assert operators(before) == [
        "regraft.fake_quantize_linear.default",
        "regraft.dequantize_linear.default",
        "aten.conv2d.default",
    ]
    assert [site.kind for site in find_sites(before, ("quantized", "quantized-activation"))] == [
        "quantized-activation",
        "quantized",
    ]
    after, _ = dequantized(before)
    assert operators(after) == ["aten.conv2d.default"]
    (site,) = find_sites(after, ("convolution",))
    assert isinstance(site, Site)
    weight = after.weight(site.bindings["weight"])
    codes, scales = before.weight("codes"), before.weight("scales")
    torch.testing.assert_close(weight, codes * scales[:, None, None, None], rtol=0, atol=0)


def test_a_second_run_finds_nothing() -> None:
    after, _ = dequantized(rounded())
    assert dequantized(after)[1].changed == ()


@pytest.mark.parametrize("form", ["dynamic", "4 bits in blocks"])
def test_quantizing_anew_with_its_evidence(form: str) -> None:
    program = small(**FORMS[form])
    bits = 4 if form == "dynamic" else 8
    after, before, records = Pipeline([Dequantize(), Quantize(bits=bits, activations="none")], context_of(program)).run(
        program
    )
    assert [record.result.changed != () for record in records] == [True, True]
    assert operators(after).count("regraft.quantized_linear.default") == 2
    evidence = records[-1].result.evidence
    assert evidence is not None
    assert evidence.fidelity is not None
    assert 0.98 < evidence.fidelity.mean_cosine < 1
    assert (evidence.weight_bytes < before.weight_bytes) == (bits == 4)


def test_quantize_says_what_to_run_first() -> None:
    program = small()
    _, result = apply_graft(Quantize(bits=4), program, (), context_of(program))
    assert result.changed == ()
    assert {refusal.reason for refusal in result.refusals} == {"it is quantized already: run dequantize first"}


def test_folding_constants_keeps_weights_quantized() -> None:
    program = rounded()
    assert FoldConstants().rewrite(program, context_of(program)).changed == ()


class ComputedScales(nn.Module):
    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.ones(4, 4, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ dequantize_linear(self.codes, x.amax(), None, "int8", 0, 0)


def test_scales_that_inputs_decide_are_refused() -> None:
    program = captured(ComputedScales(), x=torch.randn(2, 4))
    (refused,) = find_sites(program, ("quantized",))
    assert isinstance(refused, Refusal)
    assert refused.reason == "its codes or scales are computed from inputs"
    assert dequantized(program)[1].changed == ()
