"""Losses of classification."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates

REDUCTIONS = ("none", "mean", "sum")
"""By torch's numbers."""


@translates("aten.nll_loss_nd.default", "aten.nll_loss.default", "aten.nll_loss2d.default")
def negative_log_likelihood(
    w: GraphWriter,
    node: fx.Node,
    log_probabilities: fx.Node,
    target: fx.Node,
    weight: fx.Node | None,
    reduction: int,
    ignore_index: int,
) -> ir.Value:
    return w.emit(
        "NegativeLogLikelihoodLoss",
        w.value(log_probabilities),
        w.value(target),
        None if weight is None else w.value(weight),
        reduction=REDUCTIONS[reduction],
        ignore_index=ignore_index,
    )
