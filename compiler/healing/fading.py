"""What fades out while stand-ins learn: dense weights beside those that take their place.

Modules that are Fading hear how far along a training is, from 0 at its start to 1 when half its time is used. At 1 they
are what ships. They are judged, and left, at 1, and until then no judgement ends a training early.

Guided healing puts a Guide at every grafted site, which the original and its stand-in share:

    y = share * original(x) + (1 - share) * stand_in(x),    share = (1 + cos(pi * done)) / 2

Source: Wei et al. 2024, arXiv:2406.16450 (self-guided training), and arXiv:2407.09835. There the dense weight learns
as well; here it is the trained one and stays as it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

FADED_AT = 0.5
"""Of the time of a training: from then on nothing but what ships is left."""


class Fading(nn.Module, ABC):
    """A module that changes while others learn. It starts as what ships, as after `fade(1.0)`."""

    @abstractmethod
    def fade(self, done: float) -> None:
        """Be as at this part of the way, from 0 to 1."""


class Guide(Fading):
    """The original of a site and its stand-in, mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.share = 0.0

    def fade(self, done: float) -> None:
        """From the original alone to the stand-in alone."""
        self.share = 0.5 * (1 + math.cos(math.pi * done))

    def forward(self, original: Tensor, stand_in: Tensor) -> Tensor:
        """Two tensors of one shape to the same."""
        if self.share <= 0:
            return stand_in
        return self.share * original + (1 - self.share) * stand_in


def fade_all(module: nn.Module, share_done: float) -> None:
    """Let all in `module` that fades be as when this share of the time of a training is used."""
    done = min(1.0, share_done / FADED_AT)
    for part in module.modules():
        if isinstance(part, Fading):
            part.fade(done)


def fades(module: nn.Module) -> bool:
    """Whether anything in `module` fades."""
    return any(isinstance(part, Fading) for part in module.modules())
