"""Sites: the places of a Program that grafts can stand in for, found by kind. One file is one kind."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from compiler.errors import CompilerError, nearest_hint
from compiler.sites.attention import match_attention
from compiler.sites.attention_block import match_attention_block
from compiler.sites.cache import match_cache
from compiler.sites.convolution import match_convolution
from compiler.sites.convolution_chain import match_convolution_chain
from compiler.sites.embedding import match_embedding
from compiler.sites.feed_forward import match_feed_forward
from compiler.sites.linear import match_linear
from compiler.sites.names import unique
from compiler.sites.norm import match_norm
from compiler.sites.quantized import match_quantized, match_quantized_activation
from compiler.sites.residual_layer import match_residual_layer
from compiler.sites.site import Refusal, Site
from compiler.sites.token_mixer import match_token_mixer

if TYPE_CHECKING:
    from compiler.program import Program

__all__ = ["KINDS", "Refusal", "Site", "find_sites"]

Matcher = Callable[[fx.Node], Site | Refusal | None]

KINDS: dict[str, Matcher] = {
    "embedding": match_embedding,
    "norm": match_norm,
    "linear": match_linear,
    "convolution": match_convolution,
    "convolution-chain": match_convolution_chain,
    "attention": match_attention,
    "attention-block": match_attention_block,
    "token-mixer": match_token_mixer,
    "cache": match_cache,
    "feed-forward": match_feed_forward,
    "residual-layer": match_residual_layer,
    "quantized": match_quantized,
    "quantized-activation": match_quantized_activation,
}


def find_sites(program: Program, kinds: Collection[str] | None = None) -> list[Site | Refusal]:
    """The sites of the given kinds (None: all), in graph order, with a refusal for every place that nearly is one.

    A module that is called twice gives two sites, `name` and `name@2`. Raises CompilerError for an unknown kind.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            hint = nearest_hint(kind, KINDS, f"Kinds of site: {', '.join(KINDS)}.")
            raise CompilerError("finding sites", f"there is no kind of site {kind!r}", hint)
    found: list[Site | Refusal] = []
    taken: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for node in program.graph.nodes:
        for kind in KINDS if kinds is None else kinds:
            match = KINDS[kind](node)
            if isinstance(match, Site):
                found.append(replace(match, name=unique(match.name, taken[kind])))
            elif match is not None:
                found.append(match)
    return found
