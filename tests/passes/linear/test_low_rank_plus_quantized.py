"""low-rank-plus-quantized: codes beside a correction, better than codes alone, the ladder, refusals, runtimes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from rewrite_checks import captured, context_of
from structured_checks import (
    assert_refuses_unusable_weights,
    assert_runs_in_onnx_runtime,
    error,
    grafted,
    refusals,
    two_layers,
)
from structured_checks import inputs as rows
from torch import nn

from compiler.errors import CompilerError
from compiler.evidence.fidelity import reference_outputs
from compiler.grafting import apply_graft
from compiler.options import build
from compiler.passes.linear.low_rank_plus_quantized import LowRankPlusQuantized
from compiler.passes.quantize import Quantize
from compiler.program import Program


def large() -> Program:
    torch.manual_seed(0)
    return captured(nn.Sequential(nn.Linear(24, 96), nn.Tanh(), nn.Linear(96, 24)).eval(), x=rows())


def test_the_graph_after() -> None:
    after, result = grafted(LowRankPlusQuantized(weight_rank=4, group=16), large())
    called = [str(node.target) for node in after.graph.nodes if node.op == "call_function"]
    one = ["regraft.quantized_linear.default", "aten.linear.default", "aten.linear.default", "aten.add.Tensor"]
    assert called == [*one, "aten.tanh.default", *one]
    assert result.outcomes[0].note.startswith("4-bit codes and rank 4, error ")
    assert result.outcomes[0].note.endswith(" without the correction")


@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_nearer_than_codes_alone(bits: int) -> None:
    program = large()
    both = error(grafted(LowRankPlusQuantized(bits=bits, weight_rank=4, group=16), program)[0], program)
    alone = error(grafted(Quantize(bits=bits, group=16, activations="none"), program)[0], program)
    assert both < 0.7 * alone


def test_the_budget_gives_more_bits_before_it_gives_the_site_back() -> None:
    program = large()
    context = context_of(program)
    reference = reference_outputs(program, context.data.scoring)
    context = dataclasses.replace(context, max_drop=1e-3)
    _, result = apply_graft(LowRankPlusQuantized(bits=2, weight_rank=2, group=16), program, reference, context)
    assert {(one.state, one.note.partition(" codes")[0]) for one in result.outcomes} >= {("softened", "8-bit")}


def test_what_is_refused() -> None:
    assert_refuses_unusable_weights(LowRankPlusQuantized(weight_rank=2, group=16))
    refused = refusals(LowRankPlusQuantized(weight_rank=24), two_layers())
    assert refused["first"] == "a correction of rank 24 is no less than its weight of 36 x 24"
    refused = refusals(LowRankPlusQuantized(weight_rank=16), two_layers())
    assert refused["first"].startswith("codes and correction take ")
    assert refused["first"].endswith(" bytes, no fewer than the 3456 of the weight")
    after, _ = grafted(LowRankPlusQuantized(weight_rank=4, group=16), large())
    second = refusals(LowRankPlusQuantized(weight_rank=4, group=16), after)
    assert set(second.values()) == {"its weight is a factor of a structured layer already"}
    with pytest.raises(CompilerError, match="weight_rank=0 is less than 1"):
        build(LowRankPlusQuantized, {"weight_rank": "0"})


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_models_in_onnx_runtime(model: str, tmp_path: Path) -> None:
    assert_runs_in_onnx_runtime(
        LowRankPlusQuantized(weight_rank=2, group=16, layers="0"), model, tmp_path, tolerance=1e-5
    )
