"""attention to all tokens  ->  a router that reads the context once, then all tokens or a window

Before:  attention(query, key, value, mask)
After:   cond(any(router(hidden) > 0), attention(query, key, value), sliding_window_attention(query, key, value)); the
         router is linear in the mean and the maximum of the hidden states over tokens, and the branch that is not
         taken is not run. A site where every context loses little gets the window alone.
Shapes:  hidden [batch, tokens, width], query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, ...].
         One context of a batch that needs full attention gives it to all of them. Padding is read as any token.
Lossy:   contexts that lose less than `loss` nats a token in windows get them. Routers learn from calibration text, from
         the same text repeated and from recall probes, with the model as it is. A choice is by the whole context, so
         that a token's logits depend, through it, on tokens after it.
Refuses: what `sliding-window` refuses; models of no language; sites where no router tells contexts apart, or where
         every context needs full attention. make-incremental refuses the branch.
Source:  Shazeer et al. 2017, arXiv:1701.06538, section 2 (a gate per layer that decides what is computed).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from compiler.evidence.language import is_language_model
from compiler.hookspecs import hookimpl
from compiler.mixers.window import WindowedAttention, refuse_window
from compiler.passes.attention.routing.contexts import Observation, language_contexts, observed
from compiler.passes.attention.routing.routed_attention import RoutedAttention
from compiler.passes.attention.routing.training import trained_router
from compiler.passes.attention.sliding_window import SlidingWindow
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.selection.site_meter import asked_reach
from compiler.sites import Refusal, Site

LEAST_NEAR = 0.25
"""Share of contexts held out that lose little and that a router must send to the window to be worth its branch."""
MOST_LOST = 0.05
"""Share of contexts held out that need full attention and that a router may send to the window."""


@dataclass(frozen=True)
class RouteAttention(ChoosesLayers, Graft):
    """Lets each layer choose, by the context, between attention to all tokens and to a window."""

    name: ClassVar[str] = "route-attention"
    site_kinds: ClassVar[tuple[str, ...]] = ("token-mixer",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)

    window: Annotated[int, "tokens that each token sees in the window, itself included"] = 64
    sinks: Annotated[int, "first tokens of a sequence that every token sees"] = 4
    loss: Annotated[float, "nats a token that a context may lose before it gets all tokens"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        SlidingWindow(window=self.window, sinks=self.sinks)
        if not self.loss > 0:
            raise ValueError(f"loss={self.loss}: what a context may lose is above 0")

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """A stand-in whose router knows of no other site."""
        return next(self.propose_all((site,), program, context))

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Stand-ins for all sites, whose routers learn from contexts with a window in all of them."""
        reasons = {site.output: self._refusal(site, program) for site in sites}
        taken = [site for site in sites if reasons[site.output] is None]
        seen = self._observed(taken, program, context) if taken else []
        for site in sites:
            yield reasons[site.output] or self._routed(site, seen)

    @property
    def ranked_as(self) -> Graft:
        """Windows alone: routers would hide what sites cost."""
        return SlidingWindow(window=self.window, sinks=self.sinks)

    def _refusal(self, site: Site, program: Program) -> Refusal | None:
        if not is_language_model(program):
            return Refusal("what a context needs is known of language models alone", site.output.name)
        return refuse_window(site, self.window)

    def _observed(self, sites: Sequence[Site], program: Program, context: PassContext) -> list[Observation]:
        contexts = language_contexts(program, context, asked_reach(self.window))
        windows = {site.output: WindowedAttention(site, self.window, self.sinks) for site in sites}
        found = []
        for index, one in enumerate(observed(program, contexts, sites, windows, self.loss), 1):
            context.progress(f"{self.name}: what contexts need, {index} of {len(contexts)}")
            found.append(one)
        return found

    def _routed(self, site: Site, seen: Sequence[Observation]) -> Replacement | Refusal:
        needs = torch.tensor([one.lost > self.loss for one in seen], dtype=torch.bool)
        if not bool(needs.any()):
            window = WindowedAttention(site, self.window, self.sinks)
            return Replacement(window, f"window of {self.window} and {self.sinks} sinks for every context")
        if bool(needs.all()):
            return Refusal(f"every context loses more than {self.loss:g} nats a token in windows", site.output.name)
        features = torch.stack([one.seen[site.output] for one in seen])  # [contexts, 2 * width]
        router, judged = trained_router(features, needs, [one.kind for one in seen])
        if judged.near < LEAST_NEAR * judged.others or judged.needing - judged.full > MOST_LOST * judged.needing:
            return Refusal(f"no router tells contexts apart: {judged}", site.output.name)
        module = RoutedAttention(site, self.window, self.sinks, router)
        return Replacement(module, f"window of {self.window} and {self.sinks} sinks by a router: {judged}")


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [RouteAttention]
