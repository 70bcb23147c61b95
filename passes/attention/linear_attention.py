"""attention  ->  a window of attention and a recurrence over what has left it, in linear time and constant memory

Before:  attention(query, key, value, mask)
After:   near = sliding_window_attention(query, key, value); far = mixer(what left the window); near + share * (far -
         near), with share = sigmoid(z + log(tokens that left) - log_sum_exp(near)) and z a function of the hidden state
         and of how well the mixer matches the query. `kind` names the mixer: a plugin's or one of gated-delta, gla,
         kda, delta-product, lightning, s4d, short-conv. With window=0 the mixer alone. In an encoder a window on
         either side and two mixers, forwards and backwards.
Shapes:  hidden [batch, tokens, width], query [batch, heads, tokens, head_dim], key and value [batch, kv_heads, ...].
Lossy:   a state of fixed size stands for all that has left the window. Keys and values are the layer's own and the
         share is small at first, so that it starts near the window; healing (`--heal`) trains the mixer. Padding of a
         causal model stands at the end. The budget gives back whole sites.
Refuses: with a window, what `sliding-window` refuses; cross attention; kinds that no plugin brings.
Source:  Yang et al. 2024, arXiv:2412.06464 (gated-delta); Zhang et al. 2024, arXiv:2410.10254 (a window beside linear
         attention in a trained model); each file of passes/attention/mixers/ names that of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from torch import nn

from compiler.errors import CompilerError, nearest_hint
from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.hybrid import BidirectionalHybrid, CausalHybrid, PureMixer
from compiler.mixers.window import BidirectionalWindow, CausalWindow, refuse_window, window_of
from compiler.passes.attention.sliding_window import SlidingWindow
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site

if TYPE_CHECKING:
    from compiler.registry import Registry


@dataclass(frozen=True)
class LinearAttention(ChoosesLayers, Graft):
    """Lets a window of attention see near tokens and a recurrence all others."""

    name: ClassVar[str] = "linear-attention"
    site_kinds: ClassVar[tuple[str, ...]] = ("token-mixer",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)

    kind: Annotated[str, "the mixer, as in gated-delta, gla, kda, delta-product, lightning, s4d, short-conv"] = (
        "gated-delta"
    )
    window: Annotated[int, "tokens that attention still sees, on either side in an encoder; 0: the mixer alone"] = 64
    sinks: Annotated[int, "first tokens of a sequence that attention still sees"] = 4
    heads: Annotated[
        Literal["shared", "own"] | None, "states: shared by the queries of a key head, or one a query head"
    ] = None
    negative_eigenvalues: Annotated[bool | None, "delta rules: let a state change sign along a key"] = None
    steps: Annotated[int | None, "delta-product: steps of the delta rule a token"] = None
    state_size: Annotated[int | None, "s4d: complex numbers a channel"] = None
    kernel_size: Annotated[int | None, "short-conv: tokens that the convolution sees"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 0 or self.sinks < 0:
            raise ValueError(f"window={self.window}, sinks={self.sinks}: neither is less than 0")

    @property
    def reach(self) -> int:
        """How many tokens back a grafted layer sees exactly."""
        return self.window

    @property
    def ranked_as(self) -> Graft:
        """The window, which is what a hybrid is at first."""
        return SlidingWindow(window=self.window, sinks=self.sinks) if self.window else self

    @property
    def mixer_options(self) -> MixerOptions:
        """What a mixer may heed."""
        return MixerOptions(self.heads, self.negative_eigenvalues, self.steps, self.state_size, self.kernel_size)

    def check(self, registry: Registry) -> None:
        """Raises CompilerError for a kind that there is none of, and for options that it does not take."""
        self._kind(registry.mixers())

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The hybrid, initialised from the layer, or why the site keeps its attention."""
        kind = self._kind(context.mixers)
        refusal = refuse_window(site, self.window) if self.window else None
        if refusal is not None:
            return refusal
        try:
            module = self._module(kind, site)
        except ValueError as error:
            raise CompilerError(f"running {self.name}", str(error), f"See: compile passes {self.name}") from error
        beside = f"window of {self.window} and {self.sinks} sinks, " if self.window else ""
        return Replacement(module, f"{beside}{self.kind}", heal=("*",))

    def _module(self, kind: type[Mixer], site: Site) -> nn.Module:
        sizes, options = MixerSizes.of(site), self.mixer_options
        wider = sizes.with_match
        window = window_of(site, self.window, self.sinks) if self.window else None
        if not site.bindings["causal"]:
            assert not isinstance(window, CausalWindow)
            return BidirectionalHybrid(window, [kind(wider, options), kind(wider, options)], sizes)
        assert not isinstance(window, BidirectionalWindow)
        return PureMixer(kind(sizes, options)) if window is None else CausalHybrid(window, kind(wider, options), sizes)

    def _kind(self, known: Mapping[str, type[Mixer]]) -> type[Mixer]:
        """The mixer class. Raises CompilerError where there is none, or where it heeds no option that was given."""
        doing = f"running {self.name}"
        if self.kind not in known:
            hint = nearest_hint(self.kind, known, f"Kinds: {', '.join(known)}.")
            raise CompilerError(doing, f"there is no mixer {self.kind!r}", hint)
        kind = known[self.kind]
        for name in self.mixer_options.given:
            if name not in kind.takes:
                taken = f"It takes {', '.join(kind.takes)}." if kind.takes else "It takes none."
                raise CompilerError(doing, f"kind={self.kind} has no option {name!r}", taken)
        return kind


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [LinearAttention]
