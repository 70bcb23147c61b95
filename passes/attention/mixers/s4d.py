"""s4d: a linear state space with a diagonal complex transition a head, x_t = exp(D A) x_{t-1} + B u_t, y_t = Re(C x_t).

The inputs u are the layer's values; the channels of a head share A, B, C and the step D. With A = -r + i w,

    y_t = sum over s <= t of sum over n of exp(-D r_n (t - s)) Re(C_n B_n exp(i D w_n (t - s))) u_s

and cos(w(t - s)) = cos(wt) cos(ws) + sin(wt) sin(ws) makes it linear attention whose keys and queries are cosines and
sines of positions, with a decay a channel. At first A_n = -1/2 + i pi n (S4D-Lin), and y is a mean over the memory.
Source: Gu et al. 2022, arXiv:2206.11893, eq. 9 and section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.associative import memories
from compiler.mixers.mixer import HeadMaps, by_head, packed
from compiler.ops.linear_attention import linear_attention

STATE_SIZE = 16


class DiagonalStateSpace(Mixer):
    """S4D over the layer's own values, `state_size` complex numbers a channel."""

    name = "s4d"
    takes = ("state_size",)

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        count = STATE_SIZE if options.state_size is None else options.state_size
        if count < 1:
            raise ValueError(f"state_size={count}: a state has one number at least")
        heads = sizes.kv_head_count
        self.log_step = nn.Parameter((2 / memories(heads)).log().unsqueeze(1))  # [kv_heads, 1]; the real part is 1/2
        self.log_real = nn.Parameter(torch.full((heads, count), math.log(0.5)))
        self.imaginary = nn.Parameter(math.pi * torch.arange(count, dtype=torch.float32).repeat(heads, 1))
        constant = torch.zeros(sizes.head_count, count)
        constant[:, 0] = 1.0
        self.real_output = nn.Parameter(constant)  # C B, [heads, count]
        self.imaginary_output = nn.Parameter(torch.zeros(sizes.head_count, count))
        self.output_map = HeadMaps(sizes.head_count, sizes.value_dim)

    def write(self, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """The values."""
        return (packed(value),)

    def read(self, hidden: Tensor, query: Tensor, written: Sequence[Tensor], positions: Tensor) -> Tensor:
        """Linear attention from positions to positions; only their differences count."""
        heads, kv_heads = self.sizes.head_count, self.sizes.kv_head_count
        step = self.log_step.exp()
        rate = step * self.log_real.exp()  # [kv_heads, count]: what the real part of D A is below 0
        angles = positions.to(step.dtype)[..., None, None] * (step * self.imaginary)  # [1, tokens, kv_heads, count]
        cos, sin = (one.expand(hidden.shape[0], -1, -1, -1) for one in (angles.cos(), angles.sin()))
        repeats = heads // kv_heads
        q_cos, q_sin = (one.repeat_interleave(repeats, 2) for one in (cos, sin))
        asked = torch.cat(
            [
                self.real_output * q_cos - self.imaginary_output * q_sin,
                self.real_output * q_sin + self.imaginary_output * q_cos,
            ],
            -1,
        )  # [batch, tokens, heads, 2 count]
        # The integral over a step, so that a constant input gives a constant answer.
        given = torch.cat([cos, sin], -1) * torch.cat([1 - (-rate).exp()] * 2, -1)
        decay = torch.cat([-rate, -rate], -1).flatten().expand(*hidden.shape[:2], -1)
        output, _ = linear_attention(
            asked.flatten(2), given.flatten(2), written[0], None, decay, None, heads, kv_heads, "gated", 1.0
        )
        mapped: Tensor = self.output_map(by_head(output, heads))
        return mapped


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """The mixer of this file."""
    return [DiagonalStateSpace]
