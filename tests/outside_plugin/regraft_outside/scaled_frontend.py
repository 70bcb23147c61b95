"""Models named `scaled:WIDTH`: a linear layer whose output is multiplied by one. For tests of the frontend hook."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from compiler.frontends import Frontend, LoadOptions
from compiler.frontends.torch_export import capture
from compiler.program import Program


class Scaled(nn.Module):
    """linear(x) * 1"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * 1


class ScaledFrontend(Frontend):
    """Builds the model that the name says."""

    name: ClassVar[str] = "scaled"
    form: ClassVar[str] = "scaled:WIDTH"

    def accepts(self, model: str) -> bool:
        return model.startswith("scaled:") and model.removeprefix("scaled:").isdecimal()

    def load(self, model: str, options: LoadOptions) -> Program:
        width = int(model.removeprefix("scaled:"))
        torch.manual_seed(0)
        return capture(Scaled(width).eval(), {"x": torch.randn(2, width)}, source=model)
