"""delta-product: several steps of the delta rule a token, so that its transition is a product of Householder matrices.

S_{t,0} = a_t S_{t-1};  S_{t,i} = S_{t,i-1} + b_{t,i} k_{t,i} (v_{t,i} - S_{t,i-1}^T k_{t,i})^T,  i = 1 to steps;
o_t = S_{t,steps}^T q_t. Keys and values of the first step are the layer's own, those of the others maps of them.
Source: Siems et al. 2025, arXiv:2502.10297, eq. 4 and section 3 (DeltaProduct, with the gate of Gated DeltaProduct).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.associative import WRITTEN, DeltaRuleMixer, memories, softplus_inverse, strength_gate
from compiler.mixers.mixer import Gate, HeadMaps, by_head, packed
from compiler.ops.linear_attention import linear_attention

STEPS = 2
WRITTEN_LATER = 0.02
"""What share of a key's old value the steps after the first replace at first."""
SPREAD = 0.02
"""Standard deviation of what tells the maps of later steps from the identity at first."""


class DeltaProduct(DeltaRuleMixer):
    """Gated DeltaProduct over the layer's own keys and values."""

    name = "delta-product"
    takes = (*DeltaRuleMixer.takes, "steps")

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        self.steps = STEPS if options.steps is None else options.steps
        if self.steps < 2:
            raise ValueError(f"steps={self.steps}: a product has two steps at least; one step is kind=gated-delta")
        heads, later = self.state_heads, range(self.steps - 1)
        self.later_keys = nn.ModuleList(_nearly_identity(heads, sizes.key_dim) for _ in later)
        self.later_values = nn.ModuleList(_nearly_identity(heads, sizes.value_dim) for _ in later)
        written = torch.tensor([WRITTEN] + [WRITTEN_LATER] * (self.steps - 1)).repeat_interleave(heads)
        self.strengths = strength_gate(sizes, written / self.range)  # step by step
        self.rate = nn.Parameter(torch.zeros(heads))
        self.decays = Gate(sizes.hidden_width, softplus_inverse(1 / memories(heads)))

    def decay(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, state_heads]"""
        return -self.rate.exp() * nn.functional.softplus(self.decays(hidden))

    def write(self, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Keys, values and strengths of all steps, step by step, and one decay."""
        key, value = self.for_states(key), self.for_states(value)
        keys = [self.normal(one(key)) for one in (self.key_map, *self.later_keys)]
        values = [value, *(one(value) for one in self.later_values)]
        joined = (torch.cat([packed(one) for one in parts], -1) for parts in (keys, values))
        return (*joined, self.strength(hidden), self.decay(hidden))

    def read(self, hidden: Tensor, query: Tensor, written: Sequence[Tensor], positions: Tensor) -> Tensor:
        """Each token is `steps` tokens of linear attention, of which the first decays and the last is asked."""
        key, value, strength, decay = written
        asked = packed(self.normal(self.query_map(query)))
        output, _ = linear_attention(
            self._by_step(nn.functional.pad(asked, ((self.steps - 1) * asked.shape[-1], 0))),
            self._by_step(key), self._by_step(value), None,
            self._by_step(nn.functional.pad(decay, (0, (self.steps - 1) * decay.shape[-1]))), self._by_step(strength),
            self.sizes.head_count, self.state_heads, self.update_rule, 1.0,
        )  # fmt: skip
        last = torch.unflatten(output, 1, (-1, self.steps))[:, :, -1]  # [batch, tokens, heads * value_dim]
        mapped: Tensor = self.output_map(by_head(last, self.sizes.head_count))
        return mapped

    def _by_step(self, x: Tensor) -> Tensor:
        """[batch, tokens, steps * features] as [batch, tokens * steps, features]."""
        return torch.unflatten(x, 2, (self.steps, -1)).flatten(1, 2)


def _nearly_identity(heads: int, dim: int) -> HeadMaps:
    maps = HeadMaps(heads, dim)
    with torch.no_grad():
        maps.weight.add_(torch.randn(maps.weight.shape, generator=torch.Generator().manual_seed(0)), alpha=SPREAD)
    return maps


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """The mixer of this file."""
    return [DeltaProduct]
