"""A linear layer with zeros that stay zeros while it learns; they may fade in.

Under `learn` the dense numbers are parameters and a mask lies over them, y = x (W * m)^T + b. With `fading` what the
mask hides goes out slowly, m = 1 or 1 - done, so that gradients flow through all weights at first. At the end, and
wherever the layer is judged, done is 1; `settle` puts the zeros in and takes the mask off.

Source: Kao et al. 2022, arXiv:2209.07617, section 3.1 (decaying mask, linear).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compiler.healing.fading import Fading


class MaskedLinear(Fading):
    """weight [out, in] with zeros, stays [out, in] True where there are none, bias [out] or none."""

    stays: Tensor | None

    def __init__(self, weight: Tensor, stays: Tensor, bias: Tensor | None, dense: Tensor | None = None) -> None:
        """With `dense` [out, in] learning begins from it, and it fades to what `stays` leaves."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("stays", None)
        self._stays, self._dense = stays, dense
        self._hidden = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        weight: Tensor = self.weight
        if self.stays is not None:
            weight = weight * torch.where(self.stays, 1.0, self._hidden).to(weight.dtype)
        return nn.functional.linear(x, weight, self.bias)

    def fade(self, done: float) -> None:
        """Hide what goes by this part."""
        self._hidden = 0.0 if self._dense is None else 1.0 - done

    @torch.no_grad()
    def learn(self) -> None:
        """Lay the mask over the numbers that learning begins from."""
        self.stays = self._stays
        if self._dense is not None:
            self.weight.copy_(self._dense)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the zeros in, and be as used."""
        if self.stays is not None:
            self.weight.mul_(self.stays)
        self.stays, self._dense, self._hidden = None, None, 0.0
