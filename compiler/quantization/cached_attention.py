"""Attention over int8 buffers: how far keys and values reach on calibration data, and the module that keeps them so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program
    from compiler.sites import Site

LARGEST_CODE = 127
SMALLEST_REACH = 1e-6
"""Of a channel that is always zero: its scale must not be."""


@dataclass(frozen=True)
class CacheReach:
    """The largest magnitude in every channel of the keys and of the values that one site stores, [kv_heads * head_dim].

    Two channels that a rotary embedding turns into each other have the largest length of the pair, which is as far as
    either goes at any position, those included that no calibration text is long enough for.
    """

    keys: Tensor
    values: Tensor


def cache_reaches(program: Program, sites: Sequence[Site], data: Dataset) -> dict[fx.Node, CacheReach]:
    """By the output of each site, over all calibration tokens that are no padding. Empty without calibration data."""
    gathered: dict[fx.Node, CacheReach] = {}
    by_output = {site.output: site for site in sites}
    for batch in data.calibration if sites else ():
        with torch.no_grad():
            _Recorder(program.graph_module, by_output, gathered, data, batch).run(*program.complete(batch))
    return gathered


class _Recorder(fx.Interpreter):
    """Runs the graph and widens the reaches by what each site stores."""

    def __init__(
        self,
        module: fx.GraphModule,
        sites: dict[fx.Node, Site],
        gathered: dict[fx.Node, CacheReach],
        data: Dataset,
        batch: tuple[Tensor, ...],
    ) -> None:
        super().__init__(module)
        self.sites, self.gathered, self.data, self.batch = sites, gathered, data, batch

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        site = self.sites.get(n)
        if site is not None:
            keys, values = (self._rows(present) for present in result[1:])
            keys = _pair_lengths(keys, site)
            found = CacheReach(keys.abs().amax(0), values.abs().amax(0))
            known = self.gathered.get(n, found)
            self.gathered[n] = CacheReach(
                torch.maximum(known.keys, found.keys), torch.maximum(known.values, found.values)
            )
        return result

    def _rows(self, present: Tensor) -> Tensor:
        """[batch, kv_heads, tokens, head_dim] as the rows [tokens, kv_heads * head_dim] that are no padding."""
        by_token = present.transpose(1, 2).flatten(2)
        mask = self.data.row_mask(self.batch, by_token)
        return by_token.flatten(0, 1) if mask is None else by_token[mask]


def _pair_lengths(keys: Tensor, site: Site) -> Tensor:
    """Rows of keys with each rotated channel as the length of the pair that it is in."""
    width = site.bindings["rotary_dim"]
    if not width:
        return keys
    heads = keys.view(len(keys), site.bindings["kv_head_count"], -1)
    turned, rest = heads[..., :width], heads[..., width:]
    if site.bindings["settings"]["rotary_interleaved"]:
        lengths = torch.hypot(turned[..., ::2], turned[..., 1::2]).repeat_interleave(2, -1)
    else:
        lengths = torch.hypot(turned[..., : width // 2], turned[..., width // 2 :]).repeat(1, 1, 2)
    return torch.cat([lengths, rest], dim=-1).flatten(1)


class Int8CachedAttention(nn.Module):
    """regraft::group_query_attention over buffers of codes, x / scale rounded; takes the inputs of a cache site."""

    k_scale: Tensor
    v_scale: Tensor

    def __init__(self, site: Site, k_scale: Tensor, v_scale: Tensor) -> None:
        super().__init__()
        self._names: tuple[str, ...] = site.bindings["arguments"]
        self._settings: dict[str, Any] = dict(site.bindings["settings"])
        self.register_buffer("k_scale", k_scale)
        self.register_buffer("v_scale", v_scale)

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The output and the two buffers of codes."""
        given = self._settings | dict(zip(self._names, inputs, strict=True))
        given |= {"k_scale": self.k_scale, "v_scale": self.v_scale}
        output, keys, values = torch.ops.regraft.group_query_attention.default(**given)
        return output, keys, values


def int8_scale(reach: Tensor, headroom: float, granularity: str) -> Tensor:
    """Scales of codes: one a channel, or one for all [1]."""
    widest = reach if granularity == "channel" else reach.amax(0, keepdim=True)
    return (widest * headroom).clamp(min=SMALLEST_REACH) / LARGEST_CODE
