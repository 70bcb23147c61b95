"""Losses over dynamic batches against ONNX's evaluator, their gradients against torch's own, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backend_cases import run_lowered
from graph_comparison import TextGraph, assert_same_at
from torch.nn import functional as F

from compiler.errors import CompilerError

SIZES = [{"B": 4, "N": 3}, {"B": 2, "N": 5}]


def test_losses_of_a_dynamic_batch() -> None:
    graph = """(float[B, 5, N] x, int64[B, N] t, float[5] w)
        => (float[B, N] all, float sum, float mean, float loss, float[B, 5, N] logs) {
        all = NegativeLogLikelihoodLoss <reduction = "none", ignore_index = 1> (x, t)
        sum = NegativeLogLikelihoodLoss <reduction = "sum"> (x, t, w)
        mean = NegativeLogLikelihoodLoss (x, t, w)
        loss, logs = SoftmaxCrossEntropyLoss <ignore_index = 2> (x, t)
    }"""
    assert_same_at(TextGraph(graph), SIZES, rtol=1e-4, atol=1e-5)


def test_loss_of_scores_has_torchs_gradient() -> None:
    graph = """(float[B, 3] x, int32[B] t) => (float y) <float[3, 3] weight = {1, 0, 2, 0, 1, 0, 3, 0, 1}> {
        scores = MatMul (x, weight)
        y = SoftmaxCrossEntropyLoss (scores, t)
    }"""
    program = TextGraph(graph).program()
    x, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1], dtype=torch.int32)
    (weight,) = program.graph_module.parameters()
    expected = weight.detach().clone().requires_grad_()
    F.cross_entropy(x @ expected, labels.long()).backward()
    loss: Any = program.graph_module(x, labels)[0]
    loss.backward()
    torch.testing.assert_close(weight.grad, expected.grad)
    torch.testing.assert_close(run_lowered(program, [x, labels])[0], loss.detach())


def test_unknown_reduction_is_refused() -> None:
    graph = """(float[2, 3] x, int64[2] t) => (float[2] y) {
        y = NegativeLogLikelihoodLoss <reduction = "median"> (x, t)
    }"""
    with pytest.raises(CompilerError, match="reduction is 'median'"):
        TextGraph(graph).program()
