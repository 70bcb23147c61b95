"""Factories that the tests of the command compile, as a user's own file would hold them."""

import torch
from torch import nn


class Classifier(nn.Module):
    """Three linear layers and a norm: [batch, 32] to [batch, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.second = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(self.norm(hidden))


def classifier() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The model and its example inputs."""
    torch.manual_seed(0)
    return Classifier().eval(), (torch.randn(4, 32),)


def without_inputs() -> nn.Module:
    """The model alone: its inputs come from --input."""
    return classifier()[0]


def broken() -> nn.Module:
    """Raises as it is built."""
    raise RuntimeError("the weights went missing")
