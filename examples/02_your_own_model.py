"""A model of your own: a file with a function that returns it, and example inputs.

    compile examples/02_your_own_model.py:digits -o digits
    compile inspect examples/02_your_own_model.py:digits

The first dim of the inputs becomes `batch` and stays open. Or return the module alone, and name and size its inputs on
the command line: --input image=float32[batch,1,28,28]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Digits(nn.Module):
    """image [batch, 1, 28, 28] -> scores [batch, 10]"""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.batch_norm = nn.BatchNorm2d(16)
        self.hidden = nn.Linear(16 * 14 * 14, 128)
        self.scores = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.batch_norm(self.convolution(image)))
        return self.scores(torch.relu(self.hidden(features.flatten(1))))


def digits() -> tuple[nn.Module, dict[str, Tensor]]:
    """The model with its example inputs by name. A real factory would load its weights here."""
    torch.manual_seed(0)
    return Digits().eval(), {"image": torch.randn(4, 1, 28, 28)}
