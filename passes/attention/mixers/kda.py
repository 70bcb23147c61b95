"""kda: S_t = (1 - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T, a decay a channel and the delta rule.

log a = -exp(A) softplus(W2 W1 h + c), with A a head and c a channel;  b = sigmoid(U h + d), or twice that.
Source: Kimi Team 2025, arXiv:2510.26692, eq. 1 (Kimi Delta Attention).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.associative import DeltaRuleMixer, memories, softplus_inverse
from compiler.mixers.mixer import Gate


class KimiDelta(DeltaRuleMixer):
    """Kimi Delta Attention's rule over the layer's own keys and values."""

    name = "kda"

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        self.rate = nn.Parameter(torch.zeros(self.state_heads, 1))
        constant = softplus_inverse(1 / memories(self.state_heads)).repeat_interleave(sizes.key_dim)
        self.decays = Gate(sizes.hidden_width, constant, rank=sizes.key_dim)

    def decay(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, state_heads * key_dim]"""
        by_head = torch.unflatten(nn.functional.softplus(self.decays(hidden)), 2, (self.state_heads, -1))
        decay: Tensor = -self.rate.exp() * by_head
        return decay.flatten(2)


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """The mixer of this file."""
    return [KimiDelta]
