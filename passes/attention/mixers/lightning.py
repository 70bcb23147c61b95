"""lightning: S_t = a S_{t-1} + (1 - a) k_t v_t^T, a decay a head that is fixed: lightning attention.

Source: Qin et al. 2024, arXiv:2401.04658, eq. 4 (lightning attention 2); MiniMax 2025, arXiv:2501.08313, section 2.2.
The factor 1 - a is not theirs: it stands for the norm behind their heads.
"""

from __future__ import annotations

from torch import Tensor

from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.associative import AssociativeMixer, memories


class Lightning(AssociativeMixer):
    """Linear attention with fixed decays over the layer's own keys and values."""

    name = "lightning"
    update_rule = "gated"
    decays: Tensor
    strengths: Tensor

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        decays = -1 / memories(self.state_heads)
        self.register_buffer("decays", decays)
        self.register_buffer("strengths", -decays.expm1())

    def decay(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, state_heads]"""
        return self.decays.expand(*hidden.shape[:2], -1)

    def strength(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, state_heads]"""
        return self.strengths.expand(*hidden.shape[:2], -1)


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """The mixer of this file."""
    return [Lightning]
