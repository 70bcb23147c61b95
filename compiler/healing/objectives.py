"""What healing makes small: how far a model's outputs are from the teacher's.

    language models   KL(teacher || student) in nats a token
    all others        |found - wanted|^2 / |wanted|^2  +  1 - mean cosine of the rows

Logits as wide as a vocabulary are never held: what the last layer reads is kept instead, a few rows of logits are made
at a time, and their gradient is taken at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from compiler.evidence.fidelity import MAP_RANK, main_output
from compiler.evidence.language import is_language_model
from compiler.healing.frozen_graph import FrozenLinear, head_of, return_only

if TYPE_CHECKING:
    from compiler.program import Program

ROWS_AT_ONCE = 128


class Objective(ABC):
    """How a student's output is compared with the teacher's."""

    unit: str

    @abstractmethod
    def loss(self, found: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
        """Of what the cut student gives and the cut teacher gave; `mask` [batch, tokens] leaves padding out."""


class Divergence(Objective):
    """KL from the teacher's distribution of each next token."""

    unit = "KL, nats a token"

    def __init__(self, student: FrozenLinear | None, teacher: FrozenLinear | None) -> None:
        """The layers that make logits of what the cut graphs give; None where that is logits already."""
        self._student, self._teacher = student, teacher

    def loss(self, found: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
        """found and wanted [batch, tokens, width]."""
        rows, targets = found.flatten(0, 1), wanted.flatten(0, 1)
        if mask is not None:
            rows, targets = rows[mask.flatten()], targets[mask.flatten()]
        value: Tensor = _RowDivergence.apply(rows, targets, self._student, self._teacher)  # type: ignore[no-untyped-call]
        return value


class OutputError(Objective):
    """Squared error and angle."""

    unit = "squared error + 1 - cosine"

    def loss(self, found: Tensor, wanted: Tensor, mask: Tensor | None) -> Tensor:
        """found and wanted of the same shape [batch, ..., width]."""
        rows, targets = _rows(found, mask), _rows(wanted, mask)
        error = (rows - targets).square().sum() / targets.square().sum().clamp(min=1e-12)
        if rows.shape[-1] == 1:
            return error
        return error + 1 - torch.nn.functional.cosine_similarity(rows, targets, dim=-1).mean()


def cut_graphs(program: Program, teacher: fx.GraphModule, student: fx.GraphModule) -> Objective:
    """Let both graphs return what is compared, and say how."""
    index = main_output(program)
    if not is_language_model(program):
        for module in (teacher, student):
            (returned,) = module.graph.output_node().args
            return_only(module, (returned[index],))  # type: ignore[index, arg-type]
        return OutputError()
    heads = []
    for module in (student, teacher):
        node, head = head_of(module, index)
        return_only(module, (node,))
        heads.append(head)
    return Divergence(*heads)


class _RowDivergence(torch.autograd.Function):
    """Mean KL(softmax(teacher(wanted)) || softmax(student(found))) over rows, a few at a time, gradient included."""

    @staticmethod
    def forward(
        ctx: Any, found: Tensor, wanted: Tensor, student: FrozenLinear | None, teacher: FrozenLinear | None
    ) -> Tensor:
        gradient = torch.empty_like(found) if found.requires_grad else None
        total = found.new_zeros((), dtype=torch.float64)
        count = max(len(found), 1)
        for start in range(0, len(found), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            log_q = _logits(found[some], student).log_softmax(-1)  # [rows, vocabulary]
            log_p = _logits(wanted[some], teacher).log_softmax(-1)
            p = log_p.exp()
            parts = log_p.sub_(log_q).mul_(p)
            summed = parts.sum()
            if not torch.isfinite(summed):  # a token that can never come: 0 * (-inf - -inf)
                summed = parts.masked_fill_(p == 0, 0).sum()
            total += summed.double()
            if gradient is not None:
                moved = log_q.exp_().sub_(p)  # of the logits, times the count of rows
                if student is not None:
                    moved = moved.to(student.weight.dtype) @ student.weight
                gradient[some] = moved.to(gradient.dtype).div_(count)
        ctx.gradient = gradient
        return (total / count).to(found.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        return (None if ctx.gradient is None else ctx.gradient * gradients[0]), None, None, None


def _logits(rows: Tensor, head: FrozenLinear | None) -> Tensor:
    """[rows, vocabulary] in float32 at least."""
    logits: Tensor = rows if head is None else head(rows)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _rows(value: Tensor, mask: Tensor | None) -> Tensor:
    """[rows, width]: without padding; a map is one row a sample."""
    if value.dim() >= MAP_RANK:
        return value.flatten(1)
    rows = value.reshape(-1, value.shape[-1]) if value.dim() > 1 else value.reshape(-1, 1)
    return rows[mask.flatten()] if mask is not None and value.dim() == MAP_RANK - 1 else rows
