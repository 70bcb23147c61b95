"""What every candidate costs the outputs and what it uses, measured site by site on calibration data.

A candidate's cost is what it is expected to add to the divergence of the outputs: for an error d in what a site gives,
1/2 sum over outputs o of P_o mean(d_o ** 2), with P_o the mean squared gradient that comes back to o for labels drawn
from the model (compiler.quantization.sensitivity). So costs of stand-ins of any kind are in one unit, and add up.

That is a second-order estimate of one layer. It is held against the truth: at some sites of each kind, every candidate
is also put in alone and the divergence of the outputs measured. There that is its cost; elsewhere its costs are
multiplied by the geometric mean of measured over expected.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import fx, nn

from compiler.budget.judging import Judge, channel_dim
from compiler.budget.kept_costs import Entry, KeptCosts, costs_digest
from compiler.budget.places import Choice, Place
from compiler.budget.site_copies import SiteCopies
from compiler.budget.stand_alone import Figures, Several, StandAlone
from compiler.errors import CompilerError
from compiler.mapped_weights import release_memory
from compiler.quantization.calibration_walk import CalibrationWalk, UndisturbedWalk
from compiler.quantization.sensitivity import gradient_power
from compiler.rewriting import Replacement
from compiler.sites import Refusal, Site

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.rewriting import PassContext

SAMPLED_PLACES = 8
"""Places of each kind where candidates are also measured by what the outputs say."""
TRIED_PLACES = 6
"""Places of a kind after which what was never worth taking is not measured any more."""
CLEARLY = 0.8
"""A candidate is not worth taking where another uses no more and costs less than this part of it."""
LARGEST_CORRECTION = 30.0
"""Of a candidate's costs, beside the usual one: what is measured of tiny divergences may be noise."""
CERTAIN = 1e-5
"""A divergence from which on a candidate that was put in alone is judged by that, and not by what was expected."""
LEAST_COST = 1e-9
"""Divergences below it are rounding."""


@dataclass(frozen=True)
class Candidate:
    """What may stand at a place: what it costs and uses. `choice` is None for what stands there already."""

    place: Place
    choice: Choice | None
    cost: float
    figures: Figures
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """All candidates, and by what the costs of a kind of candidate were multiplied, as (kind of site, text)."""

    candidates: tuple[Candidate, ...]
    corrections: Mapping[tuple[str, str], float]
    taken_from_cache: int


@dataclass
class _Waiting:
    """A candidate whose sites have not all been passed: a shared table is read at both ends of a model."""

    choice: Choice
    proposals: Sequence[Replacement]
    cost: float = 0.0
    divergence: float | None = None


@dataclass
class Measuring:
    """One walk over the calibration data, in which every candidate of every place is built, measured and let go."""

    program: Program
    context: PassContext
    places: Sequence[Place]
    choices: Mapping[str, Sequence[Choice]]
    timed: bool
    digest: str = field(init=False)
    kept: KeptCosts = field(init=False)
    copies: SiteCopies = field(init=False)
    alone: StandAlone = field(init=False)

    def __post_init__(self) -> None:
        assert self.context.backend is not None
        offered = [choice for found in self.choices.values() for choice in found]
        self.digest = costs_digest(self.program, self.context, offered)
        self.kept = KeptCosts(self.digest)
        self.copies = SiteCopies(self.program, self.context.data, [s for place in self.places for s in place.sites])
        self.alone = StandAlone(self.context.backend, self.context.target, timed=self.timed)

    def run(self) -> Measured:
        """Every candidate of every place, what stands there already first."""
        found = {place.name: self._originals(place) for place in self.places}
        known = frozenset(self.kept.entries)
        if any(self._wanted(place) for place in self.places):
            self._measure()
        corrections, usual = self._corrections()
        seconds = {one.place.covers[0]: one.figures.seconds or 0.0 for one in self._flat(found) if one.place.is_part}
        for place in self.places:
            whole = sum(seconds.get(part, 0.0) for part in place.covers)
            for choice in self._choices(place):
                entry = self.kept.get(place, choice)
                if entry is not None and entry.refused is None and entry.figures is not None:
                    cost = entry.cost * corrections.get((place.kind, choice.text), usual)
                    if entry.divergence is not None and entry.divergence > CERTAIN:
                        cost = entry.divergence
                    figures = entry.figures.beside(whole)
                    found[place.name].append(Candidate(place, choice, cost, figures, entry.note))
        candidates = tuple(self._flat(found))
        taken = sum(one.choice is not None and (one.place.name, one.choice.text) in known for one in candidates)
        return Measured(candidates, corrections, taken)

    def _flat(self, found: Mapping[str, Sequence[Candidate]]) -> list[Candidate]:
        return [one for place in self.places for one in found[place.name]]

    def _choices(self, place: Place) -> Sequence[Choice]:
        return self.choices.get(place.kind, ())

    def _originals(self, place: Place) -> list[Candidate]:
        if not place.is_part:
            return []
        return [Candidate(place, None, 0.0, self._figures("", place, [self.copies.of(site) for site in place.sites]))]

    def _figures(self, name: str, place: Place, modules: Sequence[nn.Module]) -> Figures:
        """Of stand-ins for the sites of a place."""
        originals = [self.copies.of(site) for site in place.sites]
        both = self.copies.shapes(self.timed)
        called, typical = ([shapes[site.kind, site.output] for site in place.sites] for shapes in both)
        if len(modules) == 1:
            return self.alone.figures(name, modules[0], originals[0], called[0], typical[0])
        counts = [len(site.inputs) for site in place.sites]
        joined = (Several(modules, counts), Several(originals, counts))
        return self.alone.figures(
            name, *joined, [one for s in called for one in s], [one for s in typical for one in s]
        )

    def _measure(self) -> None:
        from compiler.selection.site_meter import SiteMeter

        context = self.context
        position = {node: index for index, node in enumerate(self.program.graph.nodes)}
        order = sorted(
            ((site, place) for place in self.places for site in place.sites),
            key=lambda one: (position[one[0].output], not one[1].is_part),
        )
        sites = [site for site, _ in order]
        walk = UndisturbedWalk(self.program, context.data, self._read_at(order))
        context.progress("budget: how much the outputs mind each site")
        dims = {site.output: dim for site in sites if (dim := channel_dim(site)) != -1}
        power = gradient_power(self.program, {site.output for site in sites}, context.data, context.seed, dims)
        meter = SiteMeter(self.program, context, sites, [], 0) if context.data.ranking else None
        sampled = self._sampled()
        waiting: dict[str, list[_Waiting]] = {}
        for index, (site, place) in enumerate(order, 1):
            context.progress(f"budget: {place.name}, {index} of {len(order)} sites")
            if site is place.sites[0]:
                waiting[place.name] = list(self._proposed(place, walk))
            if waiting[place.name]:
                judge = Judge(walk, site, self.copies.of(site), power)
                for one in waiting[place.name]:
                    module = one.proposals[place.sites.index(site)].module.eval()
                    one.cost += judge.cost(module)
                    if meter is not None and place.name in sampled:
                        one.divergence = (one.divergence or 0.0) + meter.cost(site, module).error
            if site is place.sites[-1]:
                for one in waiting.pop(place.name):
                    self._keep(place, one)
            release_memory(self.program.weights().values())

    def _read_at(self, order: Sequence[tuple[Site, Place]]) -> dict[fx.Node, list[fx.Node]]:
        """What has to be known at the output of each site: what it reads, and what the layers inside a block read."""
        read: dict[fx.Node, list[fx.Node]] = {}
        parts = {part: place for place in self.places if place.is_part for part in place.covers}
        for site, place in order:
            inside = [one for part in place.covers for one in parts[part].sites]
            read.setdefault(site.output, []).extend(node for one in (site, *inside) for node in one.inputs)
        return read

    def _proposed(self, place: Place, walk: CalibrationWalk) -> Iterator[_Waiting]:
        """Stand-ins for a place by all choices that have not been measured there and are worth it."""
        wanted = self._wanted(place)
        together = replace(self.context, max_drop=None, healing=None, walk=walk if len(place.sites) == 1 else None)
        if len(place.sites) == 1 and wanted:
            walk.inputs(place.sites[0])  # once, before threads ask for it
            if place.kind == "linear":
                walk.statistics(place.sites[0])

        def propose(choice: Choice) -> list[Replacement | Refusal]:
            return list(choice.graft.propose_all(place.sites, self.program, together))

        threads = 1 if not place.is_part else min(2, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads) as pool:
            for choice, made in zip(wanted, pool.map(propose, wanted), strict=True):
                refusals = [one for one in made if isinstance(one, Refusal)]
                if refusals:
                    self.kept.add(place, choice, Entry(refused=refusals[0].reason))
                else:
                    yield _Waiting(choice, [one for one in made if isinstance(one, Replacement)])

    def _keep(self, place: Place, one: _Waiting) -> None:
        try:
            figures = self._figures(one.choice.text, place, [proposal.module for proposal in one.proposals])
        except CompilerError as error:  # a backend may have no way to write what a plugin stands in
            self.kept.add(place, one.choice, Entry(refused=error.problem))
            return
        note = "; ".join(dict.fromkeys(proposal.note for proposal in one.proposals))
        cost = one.cost if math.isfinite(one.cost) else math.inf
        self.kept.add(place, one.choice, Entry(cost, figures, note, one.divergence))

    def _wanted(self, place: Place) -> list[Choice]:
        """Choices that are not measured at a place and are worth it."""
        unknown = [one for one in self._choices(place) if self.kept.get(place, one) is None]
        hopeless = self._hopeless(place.kind) if unknown else set()
        return [one for one in unknown if one.text not in hopeless]

    def _hopeless(self, kind: str) -> set[str]:
        """Choices to which another was clearly better at each of the places of this kind that they were measured at."""
        rows = [
            {one.text: entry for one in self._choices(place) if (entry := self.kept.get(place, one)) is not None}
            for place in self.places
            if place.kind == kind
        ]
        found = set()
        for text in {text for row in rows for text in row}:
            measured = [row for row in rows if text in row and row[text].refused is None]
            if len(measured) >= TRIED_PLACES and all(
                any(_is_better(other, row[text]) for other in row.values()) for row in measured
            ):
                found.add(text)
        return found

    def _sampled(self) -> set[str]:
        """Names of places of each kind, evenly spaced."""
        found: set[str] = set()
        for kind in {place.kind for place in self.places}:
            names = [place.name for place in self.places if place.kind == kind]
            count = min(SAMPLED_PLACES, len(names))
            found |= {names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)}
        return found

    def _corrections(self) -> tuple[dict[tuple[str, str], float], float]:
        """By what costs are multiplied: for each candidate that was put in alone, and for all others."""
        logs: dict[tuple[str, str], list[float]] = {}
        for place in self.places:
            for choice in self._choices(place):
                entry = self.kept.get(place, choice)
                if entry is None or entry.divergence is None or not math.isfinite(entry.divergence + entry.cost):
                    continue
                ratio = max(entry.divergence, LEAST_COST) / max(entry.cost, LEAST_COST)
                logs.setdefault((place.kind, choice.text), []).append(math.log(ratio))
        if not logs:
            return {}, 1.0
        means = {key: sum(one) / len(one) for key, one in logs.items()}
        usual, limit = statistics.median(means.values()), math.log(LARGEST_CORRECTION)
        return {key: math.exp(min(usual + limit, max(usual - limit, one))) for key, one in means.items()}, math.exp(
            usual
        )


def _is_better(one: Entry, other: Entry) -> bool:
    """Whether one uses no more than the other and clearly costs less."""
    if one.refused is not None or one.figures is None or other.figures is None:
        return False
    fewer = one.figures.bytes <= other.figures.bytes and one.figures.flops <= other.figures.flops
    no_slower = (one.figures.seconds or 0.0) <= (other.figures.seconds or 0.0)
    return fewer and no_slower and one.cost < CLEARLY * other.cost
