"""short-conv: y_t = c_t * sum over j < k of w_j * (b * v)_{t-j}, a gated convolution over a few tokens.

The values are the layer's own; b and c are linear in the hidden state, each 1 at first, and so is the newest tap.
Source: Liquid AI 2025, LFM2 technical report, arXiv:2511.23404, section 2.1 (gated short convolution).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.mixer import Gate, by_head, packed
from compiler.ops.causal_conv import causal_conv

KERNEL_SIZE = 3


class ShortConv(Mixer):
    """LFM2's convolution over the layer's own values. It forgets after `kernel_size` tokens."""

    name = "short-conv"
    takes = ("kernel_size",)

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        size = KERNEL_SIZE if options.kernel_size is None else options.kernel_size
        if size < 1:
            raise ValueError(f"kernel_size={size}: a convolution has one tap at least")
        channels = sizes.kv_head_count * sizes.value_dim
        self.given = Gate(sizes.hidden_width, torch.ones(channels))
        self.asked = Gate(sizes.hidden_width, torch.ones(sizes.head_count * sizes.value_dim))
        weight = torch.zeros(channels, 1, size)
        weight[..., -1] = 1.0
        self.weight = nn.Parameter(weight)

    def write(self, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """The values, gated."""
        return (packed(value) * self.given(hidden),)

    def read(self, hidden: Tensor, query: Tensor, written: Sequence[Tensor], positions: Tensor) -> Tensor:
        """The convolution, repeated for every query head, gated."""
        mixed, _ = causal_conv(written[0].transpose(1, 2), self.weight, None, None, "none")
        mixed = by_head(mixed.transpose(1, 2), self.sizes.kv_head_count)
        mixed = mixed.repeat_interleave(self.sizes.head_count // self.sizes.kv_head_count, 1)
        return mixed * by_head(self.asked(hidden), self.sizes.head_count)


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """The mixer of this file."""
    return [ShortConv]
