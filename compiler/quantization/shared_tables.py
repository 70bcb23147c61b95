"""Tables that are looked up and multiplied with: the tied embedding and output head of most language models.

Both read the same codes: packed [vocabulary, blocks, block_bytes] for com.microsoft MatMulNBits, and the same bytes as
[vocabulary, width * bits / 8] for GatherBlockQuantized.

The head is what few bits of such a table harm: with SmolLM2-135M's in 4 bits, blocks of 64, to the nearest codes, the
output diverges by 0.134 nats because of the head and by 0.011 because of what is looked up. So rounding makes up for
the head's errors (GPTQ): 0.031 nats for both, in place of 0.142.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, fx

from compiler.quantization.block_rounding import Form, compensated_blocks, nearest_blocks
from compiler.quantization.calibration_walk import UndisturbedWalk
from compiler.quantization.modules import PackedBlocks

if TYPE_CHECKING:
    from compiler.calibration import ActivationStatistics
    from compiler.evidence.data import Dataset
    from compiler.program import Program
    from compiler.sites import Site


class SharedTables:
    """The weights that embedding sites share with linear sites, and their codes once these are made."""

    def __init__(self, sites: Sequence[Site], program: Program, data: Dataset | None = None) -> None:
        """`sites` are those that may be quantized; a weight that anything else reads is none of these tables.

        With `data`, codes make up for their errors on what the products read of it in the Program as it is.
        """
        self._program, self._data = program, data
        self._packed: dict[tuple[int, Form], PackedBlocks] = {}
        self._statistics: dict[int, ActivationStatistics | None] = {}
        by_weight: dict[int, list[Site]] = {}
        for site in sites:
            if site.kind in ("embedding", "linear"):
                by_weight.setdefault(id(program.weight(site.bindings["weight"])), []).append(site)
        self._shared = {key: group for key, group in by_weight.items() if self._is_table(group)}

    def others(self, site: Site) -> list[str]:
        """Names of the other sites that read the table of `site`; empty where it is not shared."""
        return [one.name for one in self._shared.get(self._key(site), ()) if one.output is not site.output]

    def packed(self, site: Site, form: Form) -> PackedBlocks:
        """The codes of its table in this form: the same tensors for every site that reads it."""
        key = self._key(site), form
        if key not in self._packed:
            table, known = self._program.weight(site.bindings["weight"]), self._product_inputs(site)
            self._packed[key] = (
                nearest_blocks(table, form)
                if known is None
                else compensated_blocks(table.detach().float(), form, known)
            )
        return self._packed[key]

    def _product_inputs(self, site: Site) -> ActivationStatistics | None:
        key = self._key(site)
        if self._data is None:
            return None
        if key not in self._statistics:
            product = next(one for one in self._shared[key] if one.kind == "linear")
            self._statistics[key] = UndisturbedWalk(self._program, self._data).statistics(product)
        return self._statistics[key]

    def _key(self, site: Site) -> int:
        weight = site.bindings.get("weight")
        return 0 if weight is None else id(self._program.weight(weight))

    def _is_table(self, group: Sequence[Site]) -> bool:
        if {site.kind for site in group} != {"embedding", "linear"}:
            return False
        if any(site.bindings.get("weight_transposed") for site in group):
            return False
        weight = self._program.weight(group[0].bindings["weight"])
        readers = {user for holder in self._holders(weight) for user in holder.users}
        return readers == {site.output for site in group}

    def _holders(self, weight: Tensor) -> list[fx.Node]:
        return [
            node
            for node in self._program.graph.find_nodes(op="get_attr")
            if isinstance(node.meta.get("val"), Tensor) and self._program.weight(node) is weight
        ]
