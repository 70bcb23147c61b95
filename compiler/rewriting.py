"""The two makes of pass. A Rewrite is exact; a Graft is lossy and proposes a stand-in for one site at a time.

A graft says only what stands in for a site. Which sites are grafted, what it costs, whether it stays and what is given
back when a budget does not hold is the pipeline's work, the same for every graft.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from compiler.sites import Refusal, Site

if TYPE_CHECKING:
    import torch

    from compiler.backend import Backend
    from compiler.budget.record import MixRecord
    from compiler.evidence import Evidence, Probe
    from compiler.evidence.data import Dataset
    from compiler.healing.plan import HealingPlan
    from compiler.healing.record import HealingRecord
    from compiler.mixers import Mixer
    from compiler.program import Program
    from compiler.quantization.calibration_walk import CalibrationWalk
    from compiler.quantization.formats import WeightFormat
    from compiler.registry import Registry
    from compiler.selection.ranking import SiteRanking
    from compiler.target import Target

BUDGETED_KINDS = ("linear", "embedding", "convolution", "feed-forward", "convolution-chain", "residual-layer")
"""Kinds of site for which grafts offer candidates to a budget unless they say otherwise."""


@dataclass(frozen=True)
class PassContext:
    """What every pass is given.

    `data` has calibration batches that a pass may look at; the batches that score it are not for passes. `max_drop` is
    the budget on the outputs (None: no budget), `tolerance` overrides the rounding allowed to rewrites (None: by
    dtype). `healing` says for how long stand-ins may learn (None: not at all).
    `probes` are those that sites may be ranked by, `mixers` and `formats` the token mixers and the weight formats of
    all plugins by name. `backend` is what the Program is lowered with (None: nothing is); what it has no kernels for
    may be simulated only where `allow_simulated`. `grafts` are those of all plugins by name, and `captured_bytes` what
    the weights of the captured model take in float32: what a budget chooses among, and a share of. `walk` is a run over
    the calibration data that is under way (compiler.quantization.calibration_walk), which several grafts share.
    """

    target: Target
    data: Dataset
    max_drop: float | None = None
    seed: int = 0
    tolerance: float | None = None
    progress: Callable[[str], None] = lambda message: None
    healing: HealingPlan | None = None
    probes: tuple[Probe, ...] = ()
    mixers: Mapping[str, type[Mixer]] = field(default_factory=dict)
    formats: Mapping[str, type[WeightFormat]] = field(default_factory=dict)
    backend: Backend | None = None
    allow_simulated: bool = False
    grafts: Mapping[str, type[Graft]] = field(default_factory=dict)
    captured_bytes: int = 0
    walk: CalibrationWalk | None = None

    def lacks_kernel(self, operator: str | None) -> str | None:
        """What to refuse a site with whose stand-in needs a kernel of this operator of the dialect (None: no operator
        of it is what it needs), or None where there is one, or none is asked for.
        """
        if self.backend is None or self.allow_simulated or self.backend.by_definition:
            return None
        if operator in self.backend.kernels:
            return None
        return f"{self.backend.name} has no kernel for it: smaller but no faster, which --allow-simulated takes"


@dataclass(frozen=True)
class SiteOutcome:
    """What became of one site in a graft pass.

    `state` is "grafted", "softened" (the budget took back the first proposal and a gentler one stands), "returned" (the
    budget took it back) or "refused". `drop` is what the site costs on its own, where that was measured.
    """

    site: str
    kind: str
    state: str
    note: str = ""
    drop: float | None = None


@dataclass(frozen=True)
class PassResult:
    """What a pass did. `changed` names the nodes or sites; an empty tuple means that the pass found nothing to do.

    `ranking` is what sites cost alone, where a graft chose them by it, `mix` what a budget chose.
    """

    changed: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    outcomes: tuple[SiteOutcome, ...] = ()
    notes: tuple[str, ...] = ()
    evidence: Evidence | None = None
    healing: HealingRecord | None = None
    ranking: SiteRanking | None = None
    mix: MixRecord | None = None


class Pass(ABC):
    """What rewrites and grafts share: a kebab-case name, an optional family, and options as dataclass fields."""

    name: ClassVar[str]
    family: ClassVar[str | None] = None
    requires: ClassVar[tuple[str, ...]] = ()
    """Passes and pipelines that run before it where they have not been asked for."""
    whole_model: ClassVar[bool] = False
    """Whether it changes all of a model or refuses: then its refusal ends the compile."""

    def check(self, registry: Registry) -> None:
        """Called before a model is captured, with what all plugins bring.

        Raises CompilerError where options need what none of them brings.
        """

    @property
    def summary(self) -> str:
        """The first line of the docstring of the module the pass stands in, or of its class."""
        import sys

        text = sys.modules[type(self).__module__].__doc__ or type(self).__doc__ or ""
        return text.strip().splitlines()[0] if text.strip() else ""


class Rewrite(Pass):
    """An exact pass: the same function, another graph. Idempotent; checked, to rounding, against the Program before."""

    @abstractmethod
    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Edit `program.graph_module` in place and say what changed."""


@dataclass
class Replacement:
    """The module that stands in for a site: `module(*site.inputs)` gives what `site.output` gave.

    `heal` names its parameters that healing may train, globs among them. `states` says which of the Program's states it
    holds in another dtype, by the name of their input. `gentler` is what the pipeline tries before it gives the site
    back entirely. `alone` says whether it first learns what its site gives, on its own: what was fitted to that already
    has nothing to gain from it. `rate` is the part of healing's learning rates that suits it: weights that nearly fit
    are spoilt by steps that new parameters need. `learn` is called before it learns anything, and `settle` once no
    healing follows, or what there was has ended.
    """

    module: nn.Module
    note: str
    heal: tuple[str, ...] = ()
    alone: bool = True
    rate: float = 1.0
    learn: Callable[[], None] | None = field(default=None, repr=False)
    settle: Callable[[], None] | None = field(default=None, repr=False)
    states: Mapping[str, torch.dtype] = field(default_factory=dict)
    gentler: Callable[[], Replacement | Refusal] | None = field(default=None, repr=False)


class Graft(Pass):
    """A lossy pass over sites of the kinds it names."""

    site_kinds: ClassVar[tuple[str, ...]]
    healing_weight: ClassVar[float] = 1.0
    """Its part of the time for healing, against that of the other grafts of a pipeline; 0: it has nothing to learn."""

    @abstractmethod
    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """A stand-in initialised from the site's weights, or why there is none. Leaves the Program as it is."""

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """A proposal for each site in turn: for grafts whose proposals depend on those before them."""
        for site in sites:
            yield self.propose(site, program, context)

    def planned(self, program: Program, context: PassContext) -> tuple[Graft, MixRecord | None]:
        """The graft that is applied, and why that one, where it is for the model to say; as a rule this one."""
        return self, None

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """Settings of itself that are worth measuring for sites of a kind, where `--budget` chooses what stands where.

        By default itself with its default options, for kinds of site whose weights a budget is about.
        """
        return (cls(),) if kind in cls.site_kinds and kind in BUDGETED_KINDS and not cls.whole_model else ()


def option_values(one: Pass) -> dict[str, Any]:
    """The options of a pass with their values, in the order they are declared."""
    from dataclasses import fields

    return {option.name: getattr(one, option.name) for option in fields(one)}  # type: ignore[arg-type]
