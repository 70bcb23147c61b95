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


class Encoder(nn.Module):
    """Four layers of self-attention: [batch, tokens, 16] to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(16, 16) for name in ("query", "key", "value", "output")}) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            q, k, v = (layer[name](x).unflatten(2, (2, 8)).transpose(1, 2) for name in ("query", "key", "value"))
            mixed = nn.functional.scaled_dot_product_attention(3 * q, k, v)  # [batch, 2, tokens, 8]
            x = x + layer["output"](mixed.transpose(1, 2).flatten(2))
        return x


def encoder() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The model and its example inputs."""
    torch.manual_seed(0)
    return Encoder().eval(), (torch.randn(3, 12, 16),)
