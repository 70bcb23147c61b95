"""attention  ->  the same with fewer heads, whole groups of them, with the rows and columns of the layers around it

Before:  output(attention(query(x), key(x), value(x)))      head_count heads, kv_head_count of them for key and value
After:   the same with ratio * kv_head_count groups: a key and value head goes with all query heads that read it
Shapes:  x [..., width] to the same; query [batch, heads, tokens, head_dim] with fewer heads; a cache is smaller too.
Lossy:   what the heads added is gone. Those go that the others make up for best (saliency=reconstruction), that move
         the output least when they alone go (activations), or whose weights are small (magnitude); the output
         projection is fitted anew by least squares (refit). Healing trains all that is left; the budget gives back
         half, then the site.
Refuses: attention written out over several nodes; heads that are not side by side in the outputs of linear layers;
         weights that other nodes share; operators that no rule follows through. Attention over states is no site: run
         it before make-incremental.
Source:  Michel et al. 2019, arXiv:1905.10650; Kurtic et al. 2023, arXiv:2302.04089 (ZipLM), section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from compiler.hookspecs import hookimpl
from compiler.pruning.unit_graft import UnitGraft
from compiler.pruning.unit_groups import Producer, UnitGroup
from compiler.rewriting import Pass
from compiler.sites import Site


@dataclass(frozen=True)
class PruneHeads(UnitGraft):
    """Takes heads out of attention, a key and value head with its queries at a time."""

    name: ClassVar[str] = "prune-heads"
    site_kinds: ClassVar[tuple[str, ...]] = ("attention-block",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-attention")
    unit_name: ClassVar[str] = "groups of heads"

    def groups(self, site: Site, layers: Mapping[fx.Node, Site]) -> list[UnitGroup] | str:
        """One group a key and value head."""
        sizes = site.bindings
        by_name = {node.name: layers[node] for node in site.nodes if node in layers}
        queries = sizes["head_count"] // sizes["kv_head_count"]
        widths = {"query": queries * sizes["head_dim"], "key": sizes["head_dim"], "value": sizes["value_dim"]}
        producers = [Producer(by_name[sizes[role]], sizes[f"{role}_start"], width) for role, width in widths.items()]
        last = layers[site.output]
        return [UnitGroup(sizes["kv_head_count"], queries * sizes["value_dim"], tuple(producers), last)]


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [PruneHeads]
