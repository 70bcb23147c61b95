"""A model small enough to search a budget for in seconds, and large enough that its weights are most of its file."""

from __future__ import annotations

import dataclasses

import torch
from rewrite_checks import context_of
from torch import Tensor, nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.program import Program
from compiler.rewriting import Graft, PassContext

WIDTH, INNER = 96, 192


class Block(nn.Module):
    """A feed-forward block beside what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 96] to the same."""
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class Classifier(nn.Module):
    """Two blocks and ten scores. The second block hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet, self.head = Block(), Block(), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 96] to scores [batch, 10]."""
        hidden = self.loud(x)
        return self.head(hidden + 0.03 * (self.quiet(hidden) - hidden))


def classifier() -> Classifier:
    """Always the same one."""
    torch.manual_seed(0)
    return Classifier().eval()


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """A factory as `compile FILE:build` calls it."""
    return classifier(), {"x": torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))}


def calibrated(program: Program, shape: tuple[int, ...], *grafts: type[Graft]) -> PassContext:
    """A context for ONNX Runtime, with random numbers of a shape to calibrate on and grafts to choose among."""
    plain = context_of(program)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    data = dataclasses.replace(plain.data, calibration=((drawn,),))
    return dataclasses.replace(plain, data=data, backend=OnnxRuntime(), grafts={one.name: one for one in grafts})
