"""attention to all tokens  ->  a router that reads the first tokens once, then all tokens or a window

Before:  attention(query, key, value, mask)
After:   score = context_score(hidden); routed_attention(query, key, value, score): all tokens where the score is above
         0, otherwise the window and the sinks; the router is linear in the mean and the maximum of the hidden states
         of the first `context` tokens, and what is not asked for is not run. A site where every context loses little
         gets the window alone.
Shapes:  hidden [batch, tokens, width], query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, ...],
         score [batch]: each row of a batch has its own choice; a batch with both computes both. Padding stands at the
         end.
Lossy:   contexts that lose less than `loss` nats a token in windows get them, unless they are of a kind (repeated text,
         a recall probe's) that tells fewer answers right by more than a share of `forgotten`. Routers learn from
         calibration text, from the same text repeated and from recall probes, with the model as it is. The first
         `context` tokens see all before them and settle the choice for all that follow, so that no token's logits
         depend on a later one and make-incremental keeps them in whatever pieces a text is read. What begins to recall
         later is not noticed.
Refuses: what `sliding-window` refuses; models of no language; attention that is not causal, or has a window already;
         sites where no router tells contexts apart, or where every context needs full attention; contexts that are all
         no longer than what a router reads.
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
from compiler.passes.attention.routing.contexts import Observation, language_contexts, needing_all, observed
from compiler.passes.attention.routing.routed_attention import RoutedAttention
from compiler.passes.attention.routing.training import trained_router
from compiler.passes.attention.sliding_window import SlidingWindow
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
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
    forgotten: Annotated[float, "share of right answers that recall may lose before it gets all tokens"] = 0.02
    context: Annotated[int, "first tokens of a sequence that routers read, and that see all before them"] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        SlidingWindow(window=self.window, sinks=self.sinks)
        if not self.loss > 0:
            raise ValueError(f"loss={self.loss}: what a context may lose is above 0")
        if not 0 <= self.forgotten <= 1:
            raise ValueError(f"forgotten={self.forgotten}: a share is between 0 and 1")
        if self.context < 1:
            raise ValueError(f"context={self.context}: a router reads a token at least")

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
        if site.bindings["window"] != (None, 0):
            return Refusal("its attention is not to all tokens before: it is local or both ways", site.output.name)
        return refuse_window(site, self.window)

    def _observed(self, sites: Sequence[Site], program: Program, context: PassContext) -> list[Observation]:
        contexts = language_contexts(program, context, self.window, self.context)
        windows = {site.output: WindowedAttention(site, self.window, self.sinks) for site in sites}
        found = []
        for index, one in enumerate(observed(program, contexts, sites, windows, self.context), 1):
            context.progress(f"{self.name}: what contexts need, {index} of {len(contexts)}")
            found.append(one)
        return found

    def _routed(self, site: Site, seen: Sequence[Observation]) -> Replacement | Refusal:
        if not seen:
            return Refusal(f"no context is longer than the {self.context} tokens that a router reads", site.output.name)
        needs = needing_all(seen, self.loss, self.forgotten)
        if not bool(needs.any()):
            window = WindowedAttention(site, self.window, self.sinks)
            return Replacement(window, f"window of {self.window} and {self.sinks} sinks for every context")
        if bool(needs.all()):
            reason = f"every context loses more than {self.loss:g} nats a token in windows, or recalls less"
            return Refusal(reason, site.output.name)
        features = torch.stack([one.seen[site.output] for one in seen])  # [contexts, 2 * width]
        router, judged = trained_router(features, needs, [one.kind for one in seen])
        if judged.near < LEAST_NEAR * judged.others or judged.needing - judged.full > MOST_LOST * judged.needing:
            return Refusal(f"no router tells contexts apart: {judged}", site.output.name)
        module = RoutedAttention(site, self.window, self.sinks, self.context, router)
        return Replacement(module, f"window of {self.window} and {self.sinks} sinks by a router: {judged}")


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [RouteAttention]
