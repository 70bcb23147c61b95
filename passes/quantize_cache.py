"""keys and values in float buffers  ->  keys and values in int8 buffers, rounded as they are written

Before:  group_query_attention(query, key, value, past_key float, past_value float, ...)
After:   group_query_attention(query, key, value, past_key int8, past_value int8, ..., k_scale, v_scale); the states of
         the Program are int8 between calls, a quarter of their bytes
Shapes:  past_key, past_value [batch, kv_heads, capacity, head_dim]; k_scale, v_scale [kv_heads * head_dim], or [1].
Lossy:   a key or value becomes one of 256 codes by a scale that calibration data sets once; what reaches beyond is
         clipped. Tokens attend to codes even within the call that writes them, so pieces of a prompt give what its
         whole gives. The budget gives back whole sites.
Refuses: a Program without states; buffers that are int8 already; sites that no calibration data reaches; bits other
         than 8: com.microsoft GroupQueryAttention is no faster with 4.
Source:  Hooper et al. 2024, arXiv:2401.18079, section 3.1 (keys by channel); com.microsoft GroupQueryAttention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch

from compiler.errors import CompilerError
from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.quantization.cached_attention import CacheReach, Int8CachedAttention, cache_reaches, int8_scale
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site

BITS = 8


@dataclass(frozen=True)
class QuantizeCache(ChoosesLayers, Graft):
    """Stores the keys and values of an incremental Program as int8."""

    name: ClassVar[str] = "quantize-cache"
    healing_weight = 0.0
    site_kinds: ClassVar[tuple[str, ...]] = ("cache",)
    requires: ClassVar[tuple[str, ...]] = ("make-incremental",)

    bits: Annotated[int, "bits of a key or value"] = BITS
    scales: Annotated[Literal["channel", "tensor"], "channel: a scale for each channel; tensor: one for all"] = (
        "channel"
    )
    headroom: Annotated[float, "how far beyond the calibration data codes reach, as a factor"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits != BITS:
            raise ValueError(
                f"bits={self.bits}: only {BITS} pay; ONNX Runtime decodes no faster from 4 bits than from 8"
            )
        if not self.headroom > 0:
            raise ValueError(f"headroom={self.headroom} leaves no codes: give a factor above 0")

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The attention over int8 buffers, or why it keeps its floats."""
        return next(self.propose_all((site,), program, context))

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Each site in turn, after one run over the calibration data for all of them."""
        if not program.states:
            raise CompilerError(
                f"running {self.name}",
                "the model keeps no keys and values between calls",
                f"Make it incremental first: --passes make-incremental,{self.name}.",
            )
        reaches = cache_reaches(program, [site for site in sites if site.bindings["is_float"]], context.data)
        names = {node: spec.name for node, spec in zip(program.placeholders(), program.inputs, strict=True)}

        def proposal(site: Site) -> Replacement | Refusal:
            if not site.bindings["is_float"]:
                return Refusal("its buffers are int8 already", site.output.name)
            if site.output not in reaches:
                return Refusal("no calibration data says how far its keys and values reach", site.output.name)
            pasts = tuple(names[site.bindings[part]] for part in ("past_key", "past_value"))
            return self._replacement(site, reaches[site.output], pasts)

        return map(proposal, sites)

    def _replacement(self, site: Site, reach: CacheReach, pasts: Sequence[str]) -> Replacement:
        scales = [int8_scale(one, self.headroom, self.scales) for one in (reach.keys, reach.values)]
        finer = partial(replace(self, scales="channel")._replacement, site, reach, pasts)
        return Replacement(
            Int8CachedAttention(site, *scales),
            f"int8 keys and values, a scale a {self.scales}",
            states=dict.fromkeys(pasts, torch.int8),
            gentler=finer if self.scales == "tensor" else None,
        )


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [QuantizeCache]
