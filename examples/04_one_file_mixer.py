"""A new token mixer in one file: HGRN2, whose keys are what its decays forget.

    a_t = floor + (1 - floor) sigmoid(K_t + c);   S_t = diag(a_t) S_{t-1} + (1 - a_t) v_t^T;   o_t = S_t^T softmax(q_t)

K, q and v are the layer's own keys, queries and values. A window of exact attention beside it, the backward form for
encoders, healing, choice of layers, decoding with states and lowering come from `linear-attention`.
Source: Qin et al. 2024, arXiv:2404.07904, eq. 4 (the softmax of q stands for their output norm).

    compile MODEL --plugin 04_one_file_mixer.py --passes linear-attention:kind=hgrn2:window=16:layers=every-2nd -o OUT
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.mixer import by_head, packed
from compiler.ops.linear_attention import linear_attention

FLOOR = 0.9


class Hgrn2(Mixer):
    """Forgets by the key's channels and writes into what it forgets."""

    name = "hgrn2"

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        self.bias = nn.Parameter(torch.full((sizes.kv_head_count * sizes.key_dim,), 3.0))

    def write(self, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        forgotten = (1 - FLOOR) * torch.sigmoid(-packed(key) - self.bias)  # 1 - a
        return forgotten, packed(value), torch.log1p(-forgotten)

    def read(self, hidden: Tensor, query: Tensor, written: Sequence[Tensor], positions: Tensor) -> Tensor:
        key, value, decay = written
        heads, kv_heads = self.sizes.head_count, self.sizes.kv_head_count
        asked = packed(query.softmax(-1))
        output, _ = linear_attention(asked, key, value, None, decay, None, heads, kv_heads, "gated", 1.0)
        return by_head(output, heads)


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    return [Hgrn2]
