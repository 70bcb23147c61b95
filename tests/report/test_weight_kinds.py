"""Bytes by kind: every stored tensor once, under what reads it."""

from __future__ import annotations

import torch
from torch import nn

from compiler.frontends.torch_export import capture
from compiler.report.weight_kinds import weight_bytes_by_kind


class Tied(nn.Module):
    """A table that looks up and scores, a convolution, a norm: ids [batch, tokens] to scores [batch, tokens, 20]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.mix = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.mix(self.table(ids).transpose(1, 2)).transpose(1, 2)
        return self.up(self.norm(rows)) * self.scale @ self.table.weight.T


def test_each_kind_has_its_bytes() -> None:
    program = capture(Tied().eval(), {"ids": torch.arange(12).reshape(2, 6)}, source="tied")
    assert weight_bytes_by_kind(program) == {
        "linear": 4 * (8 * 8 + 8) + 4 * 8,  # the scale is read on the way to the last product
        "embedding": 4 * 20 * 8,
        "convolution": 4 * (8 * 8 * 3 + 8),
        "norm": 4 * 2 * 8,
    }
