"""gated-delta: S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T, a scalar decay a head and the delta rule.

log a = -exp(A) softplus(W h + c);  b = sigmoid(U h + d), or twice that with `negative_eigenvalues`.
Source: Yang et al. 2024, arXiv:2412.06464, eq. 10 (Gated DeltaNet); Grazzi et al. 2024, arXiv:2411.12537 (negative
eigenvalues).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.associative import DeltaRuleMixer, memories, softplus_inverse
from compiler.mixers.mixer import Gate


class GatedDelta(DeltaRuleMixer):
    """Gated DeltaNet's rule over the layer's own keys and values."""

    name = "gated-delta"

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        self.rate = nn.Parameter(torch.zeros(self.state_heads))
        self.decays = Gate(sizes.hidden_width, softplus_inverse(1 / memories(self.state_heads)))

    def decay(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, state_heads]"""
        return -self.rate.exp() * nn.functional.softplus(self.decays(hidden))


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """The mixer of this file."""
    return [GatedDelta]
