"""gla: S_t = diag(a_t) S_{t-1} + b_t k_t v_t^T, a decay a channel that depends on the token, and a sum of what came.

log a = log(sigmoid(W2 W1 h + c)) / 16;  b = sigmoid(U h + d), at first the share that a mean over the memory has.
Source: Yang et al. 2023, arXiv:2312.06635, eq. 3 and section 4.3 (gated linear attention); b is not theirs: it stands
for the norm behind their heads, which a layer that is grafted does not have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.associative import AssociativeMixer, memories, strength_gate
from compiler.mixers.mixer import Gate

RANK, TEMPERATURE = 16, 16.0


class GatedLinear(AssociativeMixer):
    """Gated linear attention over the layer's own keys and values."""

    name = "gla"
    update_rule = "gated"

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        rates = 1 / memories(self.state_heads)
        self.strengths = strength_gate(sizes, rates)
        constant = torch.logit((-TEMPERATURE * rates).exp()).repeat_interleave(sizes.key_dim)
        self.decays = Gate(sizes.hidden_width, constant, rank=RANK)

    def decay(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, state_heads * key_dim]"""
        return nn.functional.softplus(-self.decays(hidden)) * (-1 / TEMPERATURE)

    def strength(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, state_heads]"""
        return torch.sigmoid(self.strengths(hidden))


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """The mixer of this file."""
    return [GatedLinear]
