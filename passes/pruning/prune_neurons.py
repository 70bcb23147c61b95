"""feed-forward and convolutions  ->  the same with fewer hidden neurons or channels, which are really gone

Before:  down(activation(gate(x)) * up(x));  conv(activation(batch_norm(conv(x))))
After:   the same with the rows of gate and up and the columns of down that stay; convolutions likewise, with the batch
         norms, depthwise convolutions, pools, squeezes and excitations between them
Shapes:  x [..., hidden_size] to the same through ratio * intermediate_size neurons; x [batch, channels, ...] likewise.
         Widths that others read, as the sum at the end of a residual block, stay.
Lossy:   what the neurons added is gone. Those go that the others make up for best (saliency=reconstruction), that move
         the output least when they alone go (activations), or whose weights are small (magnitude); down is fitted anew
         by least squares (refit). Healing trains all that is left; the budget gives back half, then the site.
Refuses: experts; weights that other nodes share, or that are not finite; operators that no rule follows through.
Source:  Kurtic et al. 2023, arXiv:2302.04089 (ZipLM), section 3.1; An et al. 2023, arXiv:2312.11983 (FLAP); Meng et al.
         2024, arXiv:2403.12983 (OSSCAR), section 3, for the least-squares layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import fx

from compiler.hookspecs import hookimpl
from compiler.pruning.unit_graft import UnitGraft
from compiler.pruning.unit_groups import Producer, Reader, UnitGroup
from compiler.rewriting import Graft, Pass
from compiler.sites import Site

OFFERED = {"feed-forward": (0.9, 0.75, 0.5), "convolution-chain": (0.9, 0.75, 0.5, 0.25)}
"""Parts of the units that are left, where a budget chooses, by kind of site: what work a convolution costs besides its
products, fewer channels save too.
"""
MULTIPLES = {"feed-forward": 32, "convolution-chain": 8}
"""Of what is left, by kind of site: whole blocks of quantized weights; whole vectors of channels."""


@dataclass(frozen=True)
class PruneNeurons(UnitGraft):
    """Takes hidden neurons out of feed-forward blocks, and channels out of chains of convolutions."""

    name: ClassVar[str] = "prune-neurons"
    site_kinds: ClassVar[tuple[str, ...]] = ("feed-forward", "convolution-chain")
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)
    unit_name: ClassVar[str] = "neurons"

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """Some widths of each kind of site."""
        return tuple(cls(ratio=ratio, multiple=MULTIPLES[kind]) for ratio in OFFERED.get(kind, ()))

    def groups(self, site: Site, layers: Mapping[fx.Node, Site]) -> list[UnitGroup] | str:
        """One group for a feed-forward block, one between two convolutions each."""
        inside = [layers[node] for node in site.nodes if node in layers]
        if site.kind == "convolution-chain":
            by_name = {layer.output.name: layer for layer in inside}
            pairs = pairwise(by_name[name] for name in site.bindings["layers"])
            return [
                _channels(first, second, [(by_name[squeeze], by_name[excite]) for squeeze, excite in gates])
                for (first, second), gates in zip(pairs, site.bindings["gates"], strict=True)
            ]
        if site.bindings["form"] == "experts":
            return "its layers are those of experts"
        by_weight = {layer.bindings["weight"]: layer for layer in inside}
        producers = [
            Producer(by_weight[site.bindings[role]], site.bindings[f"{role}_rows"][0], 1)
            for role in ("gate", "up")
            if site.bindings[role] is not None
        ]
        down = layers[site.output]
        return [UnitGroup(site.bindings["intermediate_size"], 1, tuple(producers), down)]


def _channels(first: Site, second: Site, gates: Sequence[tuple[Site, Site]]) -> UnitGroup:
    """The channels between two convolutions; of each gate, one convolution reads them and one gives them factors."""
    givers = (first, *(excite for _, excite in gates))
    return UnitGroup(
        count=first.bindings["out_channels"],
        inner=math.prod(second.bindings["kernel"]),
        producers=tuple(Producer(giver, 0, 1) for giver in givers),
        consumer=second,
        also=tuple(Reader(squeeze, math.prod(squeeze.bindings["kernel"])) for squeeze, _ in gates),
    )


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [PruneNeurons]
