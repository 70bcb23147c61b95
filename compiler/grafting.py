"""Applies one graft: proposes, puts stand-ins in, measures, gives sites back, worst first, until the budget holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from compiler.evidence.fidelity import Reference, measure_fidelity, reference_outputs
from compiler.mapped_weights import release_memory
from compiler.patterns import drop_dead_code, has_tensor
from compiler.rewriting import Graft, PassContext, PassResult, Replacement, SiteOutcome
from compiler.selection.choose_sites import choose_sites
from compiler.sites import Refusal, Site, find_sites
from compiler.states import hold_state_as

if TYPE_CHECKING:
    from compiler.healing.record import HealingRecord
    from compiler.program import Program
    from compiler.selection.ranking import SiteRanking


@dataclass
class GraftedSite:
    """A site with its ladder of stand-ins. Rung 0 is the first proposal; past the last rung stands the original."""

    site: Site
    rungs: list[Replacement]
    calls: dict[int, fx.Node] = field(default_factory=dict)
    rung: int = 0
    drop: float | None = None
    active: fx.Node | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Healed weights of the layers around the site by name; they stand where rung 0 does."""

    @property
    def returned(self) -> bool:
        """Whether the original stands again."""
        return self.rung >= len(self.rungs)


def apply_graft(
    graft: Graft, program: Program, reference: Reference, context: PassContext
) -> tuple[Program, PassResult]:
    """The Program with the graft's stand-ins, within `context.max_drop` of `reference` on the scoring data."""
    work = program.copy()
    grafted, refused, ranking = _propose_all(graft, work, context)
    if not grafted:
        outcomes = tuple(SiteOutcome(r.name, r.kind, "refused", r.reason) for r in refused)
        return program, PassResult(refusals=tuple(refused), outcomes=outcomes, ranking=ranking)
    bench = Workbench.filled(graft, work, grafted)
    healing = _heal(bench, program, context)
    for item in grafted:
        if item.rungs[0].settle is not None:
            item.rungs[0].settle()
    notes: tuple[str, ...] = ()
    if context.max_drop is not None and context.data.scoring:
        notes = _hold_budget(bench, reference, context)
    result = PassResult(
        changed=tuple(item.site.name for item in grafted if not item.returned),
        refusals=tuple(refused),
        outcomes=tuple(_outcomes(grafted, refused)),
        notes=notes,
        healing=healing,
        ranking=ranking,
    )
    if not result.changed:
        return program, result
    finished = bench.trial()
    finished.tidy()
    return finished.flattened(), result


def put_in(graft: Graft, program: Program, context: PassContext) -> Program:
    """The Program with all stand-ins of a graft, whatever they cost: nothing learns and nothing is given back."""
    work = program.copy()
    grafted, _, _ = _propose_all(graft, work, context)
    finished = Workbench.filled(graft, work, grafted).trial()
    finished.tidy()
    return finished.flattened()


def _propose_all(
    graft: Graft, program: Program, context: PassContext
) -> tuple[list[GraftedSite], list[Refusal], SiteRanking | None]:
    grafted: list[GraftedSite] = []
    refused: list[Refusal] = []
    found = find_sites(program, graft.site_kinds)
    refused += [one for one in found if isinstance(one, Refusal)]
    chosen = choose_sites(graft, [one for one in found if isinstance(one, Site)], program, context)
    refused += chosen.left_out
    proposals = graft.propose_all(chosen.sites, program, context)
    for site in chosen.sites:
        context.progress(f"{graft.name}: {site.name}")
        proposal = next(proposals)
        if isinstance(proposal, Refusal):
            refused.append(
                Refusal(proposal.reason, proposal.node, proposal.name or site.name, proposal.kind or site.kind)
            )
        else:
            grafted.append(GraftedSite(site, [proposal]))
        release_memory(program.weights().values())
    return grafted, refused, chosen.ranking


class Workbench:
    """Puts rungs of stand-ins in and out of a Program; the nodes they replace stay until `trial` drops what is dead."""

    def __init__(self, graft: Graft, program: Program, grafted: list[GraftedSite]) -> None:
        self.graft = graft
        self.program = program
        self.grafted = grafted
        self._active: dict[fx.Node, fx.Node] = {}
        self._originals: dict[str, Tensor] = {}
        self._state_types = {spec.name: getattr(torch, spec.dtype) for spec in program.inputs}

    @classmethod
    def filled(cls, graft: Graft, program: Program, grafted: list[GraftedSite]) -> Workbench:
        """With the first proposal for every site in its place."""
        bench = cls(graft, program, grafted)
        for index in range(len(grafted)):
            bench.set_rung(index, 0)
        return bench

    def trial(self) -> Program:
        """A runnable copy of the Program as it is arranged now, without dead nodes."""
        copy = self.program.copy()
        drop_dead_code(copy.graph)
        copy.graph_module.recompile()
        return copy

    def guided_trial(self) -> Program:
        """A trial in which originals and stand-ins share their places, for healing (compiler/healing/fading.py)."""
        pairs = [(one.site.output, one.active) for one in self.grafted if has_tensor(one.site.output)]
        guides = [(call, self._guide(output, call)) for output, call in pairs if call not in (None, output)]
        trial = self.trial()
        for call, guide in guides:
            guide.replace_all_uses_with(call)
            self.program.graph.erase_node(guide)
            self.program.graph_module.delete_submodule(str(guide.target))
        return trial

    def _guide(self, original: fx.Node, call: fx.Node) -> fx.Node:
        from compiler.healing.fading import Guide

        name = self.program.free_name(f"{call.target}_guide")
        self.program.graph_module.add_submodule(name, Guide())
        with self.program.graph.inserting_after(original):
            guide = self.program.graph.call_module(name, (original, call))
        guide.meta = dict(call.meta)
        call.replace_all_uses_with(guide, delete_user_cb=lambda user: user is not guide)
        return guide

    def set_rung(self, index: int, rung: int) -> None:
        """Let rung `rung` of a site stand; a rung past the last gives the original back."""
        item = self.grafted[index]
        now = item.active or item.site.output
        wanted = item.site.output if rung >= len(item.rungs) else self._call(item, rung)
        item.rung = rung
        self.use_weights(item)
        if wanted is now:
            return
        self._hold_states(item)
        now.replace_all_uses_with(wanted)
        item.active = wanted
        self._active[item.site.output] = wanted

    def use_weights(self, item: GraftedSite) -> None:
        """Let the layers around a site have the weights that go with what stands there now."""
        for name, healed in item.weights.items():
            self._originals.setdefault(name, self.program.weight(name))
            self.program.set_weight(name, self._originals[name] if item.rung else healed)

    def _hold_states(self, item: GraftedSite) -> None:
        """Let the states that a site reads be of the dtype that what stands there now takes."""
        taken = {} if item.returned else item.rungs[item.rung].states
        for past in {name for rung in item.rungs for name in rung.states}:
            hold_state_as(self.program, past, taken.get(past, self._state_types[past]))

    def _call(self, item: GraftedSite, rung: int) -> fx.Node:
        if rung in item.calls:
            return item.calls[rung]
        name = self._place(item.site)
        self.program.graph_module.add_submodule(name, item.rungs[rung].module.eval())
        output = item.site.output
        with self.program.graph.inserting_before(output):
            call = self.program.graph.call_module(
                name, tuple(self._active.get(node, node) for node in item.site.inputs)
            )
        for key in ("val", "nn_module_stack", "source_fn_stack"):
            if key in output.meta:
                call.meta[key] = output.meta[key]
        item.calls[rung] = call
        return call

    def _place(self, site: Site) -> str:
        """Where the stand-in is kept: below the site's own path, or beside it where a tensor stands there already."""
        path, graft = _module_path(site), self.graft.name.replace("-", "_")
        if _passes_a_tensor(self.program.graph_module, path):
            return self.program.free_name(f"{path.replace('.', '_')}_{graft}")
        return self.program.free_name(f"{path}.{graft}")


def _heal(bench: Workbench, teacher: Program, context: PassContext) -> HealingRecord | None:
    """Train what may learn, where a budget of time is given and there is anything."""
    if context.healing is None:
        return None
    from compiler.healing.heal import heal
    from compiler.healing.plan import Patient

    first = [(one.site, one.rungs[0]) for one in bench.grafted]
    for _, rung in first:
        if rung.learn is not None:
            rung.learn()
    patients = [Patient(site, rung.module, rung.heal, rung.alone, rung.rate) for site, rung in first]
    student = bench.guided_trial() if context.healing.options.guided else bench.trial()
    healed = heal(bench.graft.name, teacher, student, patients, context)
    if healed is None:
        return None
    for item, weights in zip(bench.grafted, healed.weights, strict=True):
        item.weights = weights
        bench.use_weights(item)
    return healed.record


def _hold_budget(bench: Workbench, reference: Reference, context: PassContext) -> tuple[str, ...]:
    """Give back as few rungs as it takes: sites ranked on calibration data, the budget held on scoring data."""
    assert context.max_drop is not None
    data = context.data
    drop = measure_fidelity(bench.trial(), reference, data, data.scoring).drop
    if drop <= context.max_drop:
        return ()
    _rank_alone(bench, context)
    order = sorted(range(len(bench.grafted)), key=lambda i: -(bench.grafted[i].drop or 0.0))
    ladder = [_all_rungs(bench.grafted[index]) for index in range(len(bench.grafted))]
    steps = [(index, rung) for rung in range(1, max(ladder) + 1) for index in order if rung <= ladder[index]]

    def holds(count: int) -> bool:
        state = dict.fromkeys(order, 0)
        state |= dict(steps[:count])
        for index, rung in state.items():
            bench.set_rung(index, rung)
        context.progress(f"{bench.graft.name}: budget, {count} of {len(steps)} steps given back")
        return measure_fidelity(bench.trial(), reference, data, data.scoring).drop <= context.max_drop  # type: ignore[operator]

    count = _smallest(len(steps), holds)
    holds(count)
    given_back = f"{count} of {len(steps)} steps were given back to hold {context.max_drop:g}"
    return (f"drop was {drop:.4g} with every site grafted; {given_back}",)


def _all_rungs(item: GraftedSite) -> int:
    """Build the whole ladder of a site and return the rung at which the original stands."""
    while (last := item.rungs[-1]).gentler is not None:
        gentler = last.gentler()
        if not isinstance(gentler, Replacement):
            break
        item.rungs.append(gentler)
    return len(item.rungs)


def _smallest(limit: int, holds: Callable[[int], bool]) -> int:
    """The smallest count for which `holds`, taken as monotone; `limit` gives everything back and always holds."""
    low, high = 0, limit
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _rank_alone(bench: Workbench, context: PassContext) -> None:
    """Measure what each site costs when it alone is grafted."""
    batches = context.data.ranking or context.data.scoring
    for index, item in enumerate(bench.grafted):
        bench.set_rung(index, len(item.rungs))
    expected = reference_outputs(bench.trial(), batches)
    for index, item in enumerate(bench.grafted):
        context.progress(f"{bench.graft.name}: what {item.site.name} costs alone")
        bench.set_rung(index, 0)
        item.drop = measure_fidelity(bench.trial(), expected, context.data, batches).drop
        bench.set_rung(index, len(item.rungs))
    for index in range(len(bench.grafted)):
        bench.set_rung(index, 0)


def _outcomes(grafted: Sequence[GraftedSite], refused: Sequence[Refusal]) -> list[SiteOutcome]:
    outcomes = []
    for item in grafted:
        if item.returned:
            state, note = "returned", "over budget: the original stands"
        else:
            state, note = ("softened" if item.rung else "grafted"), item.rungs[item.rung].note
        outcomes.append(SiteOutcome(item.site.name, item.site.kind, state, note, item.drop))
    return outcomes + [SiteOutcome(r.name, r.kind, "refused", r.reason) for r in refused]


def _module_path(site: Site) -> str:
    """Where the stand-in's weights are stored: beside the site's own."""
    weight = site.bindings.get("weight")
    return str(weight).rpartition(".")[0] or site.name if weight else site.name


def _passes_a_tensor(module: nn.Module, path: str) -> bool:
    """Whether a dotted path leads to or through a tensor, below which nothing can be kept."""
    found: object = module
    for part in path.split("."):
        found = getattr(found, part, None)
        if isinstance(found, Tensor):
            return True
    return False
