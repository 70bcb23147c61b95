"""Losses of classification: from log probabilities, and from scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.kernel_dtypes import as_dtype
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator

REDUCTIONS = ("none", "sum", "mean")
NO_CLASS = -100
"""What torch ignores unless told otherwise; no class has a negative number."""


@operator("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(
    log_probabilities: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = NO_CLASS,
    reduction: str = "mean",
    node: NodeContext,
) -> Tensor:
    """log_probabilities [batch, classes, *places], target [batch, *places], weight [classes]."""
    return _loss(log_probabilities, target, weight, ignore_index, reduction, node)


@operator("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int = NO_CLASS,
    reduction: str = "mean",
    node: NodeContext,
) -> tuple[Tensor, Tensor]:
    """The loss, and the log probabilities it comes from."""
    log_probabilities = F.log_softmax(scores, 1)
    return _loss(log_probabilities, labels, weights, ignore_index, reduction, node), log_probabilities


def _loss(
    log_probabilities: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    node: NodeContext,
) -> Tensor:
    if reduction not in REDUCTIONS:
        raise node.refuse(f"reduction is {reduction!r}", f"It is one of {', '.join(REDUCTIONS)}.")
    labels = as_dtype(target, torch.int64)
    return F.nll_loss(log_probabilities, labels, weight, ignore_index=ignore_index, reduction=reduction)
