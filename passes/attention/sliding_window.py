"""attention to all tokens  ->  attention to the last ones and to the first few

Before:  attention(query, key, value, mask), over every token before (causal) or every token (bidirectional)
After:   sliding_window_attention(query, key, value, window, sinks): each token sees the `window` last tokens, itself
         included, and the first `sinks`; in an encoder, tokens less than `window` away on either side and the first
         `sinks`. Decoding keeps sinks + window keys and values, whatever the context.
Shapes:  query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, tokens, head_dim], keys rotated.
Lossy:   what left the window is forgotten: text reads well, recall of what stands far back goes with the layers that
         do it, so choose layers by `layers=auto-...`. Padding of a causal model stands at the end. The budget softens
         a site to a window four times as long, then gives it back.
Refuses: capped scores; a bias on the scores; cross attention; a window that is no longer than this one; sequences that
         are no longer than it; an incremental Program, which has no attention over whole sequences left.
Source:  Beltagy et al. 2020, arXiv:2004.05150, section 3.1 (windows); Xiao et al. 2023, arXiv:2309.17453, section 3.2
         (sinks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from compiler.hookspecs import hookimpl
from compiler.mixers.window import WindowedAttention, refuse_window
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site

SOFTENED = 4
"""How much longer the window is that the budget tries before it gives a site back."""


@dataclass(frozen=True)
class SlidingWindow(ChoosesLayers, Graft):
    """Lets attention see near tokens and the first ones only."""

    name: ClassVar[str] = "sliding-window"
    site_kinds: ClassVar[tuple[str, ...]] = ("token-mixer",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)

    window: Annotated[int, "tokens that each token sees, itself included; in an encoder, on either side"] = 64
    sinks: Annotated[int, "first tokens of a sequence that every token sees"] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window={self.window}: a token sees at least itself")
        if self.sinks < 0:
            raise ValueError(f"sinks={self.sinks} is less than none")

    @property
    def reach(self) -> int:
        """How many tokens back a grafted layer sees."""
        return self.window

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The windowed attention, or why the site keeps all its tokens."""
        return self._windowed(site, self.window, softer=True)

    def _windowed(self, site: Site, window: int, *, softer: bool) -> Replacement | Refusal:
        refusal = refuse_window(site, window)
        if refusal is not None:
            return refusal
        return Replacement(
            WindowedAttention(site, window, self.sinks),
            f"window of {window} and {self.sinks} sinks",
            gentler=(lambda: self._windowed(site, SOFTENED * window, softer=False)) if softer else None,
        )


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [SlidingWindow]
