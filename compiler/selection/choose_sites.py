"""Applies `layers=`: the sites of a Program that a graft is to replace, and why the others are left as they are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.errors import CompilerError
from compiler.rewriting import Graft
from compiler.selection.layer_choice import ChoosesLayers, LayerChoice
from compiler.selection.ranking import SiteRanking, share_count
from compiler.selection.ranking_cache import RankingCache, ranking_digest
from compiler.selection.site_meter import SiteMeter, error_name, ranking_data, ranking_probes
from compiler.sites import Refusal, Site

if TYPE_CHECKING:
    from compiler.evidence.probes.recall import RecallProbe
    from compiler.program import Program
    from compiler.rewriting import PassContext


@dataclass(frozen=True)
class ChosenSites:
    """The sites that are to be replaced, in order, a refusal for each of the others, and what `auto-` chose them by."""

    sites: tuple[Site, ...]
    left_out: tuple[Refusal, ...] = ()
    ranking: SiteRanking | None = None


def choose_sites(graft: Graft, sites: Sequence[Site], program: Program, context: PassContext) -> ChosenSites:
    """The sites that the `layers` of `graft` name; all where it has no such option.

    Raises CompilerError where a term names no site, or where there is nothing to rank sites on.
    """
    if not isinstance(graft, ChoosesLayers) or not sites:
        return ChosenSites(tuple(sites))
    choice = LayerChoice.parse(graft.layers)
    doing = f"choosing the layers of {graft.name}"
    try:
        candidates = choice.candidates(sites)
    except ValueError as error:
        hint = "The sites and their names: compile inspect MODEL"
        raise CompilerError(doing, f"layers={choice.text}: {error}", hint) from None
    ranking = None
    dear: frozenset[str] = frozenset()
    if choice.share is not None and candidates:
        if not context.data.ranking:
            raise CompilerError(doing, "there is no data to rank sites on", "Give some with --data, or name layers.")
        ranking = rank_sites(graft, candidates, program, context, choice.share)
        dear = frozenset(cost.node for cost in ranking.costs) - ranking.chosen()
    kept = {site.output.name for site in candidates} - dear
    left_out = [
        _left_out(site, choice, ranking if site.output.name in dear else None)
        for site in sites
        if site.output.name not in kept
    ]
    return ChosenSites(tuple(site for site in sites if site.output.name in kept), tuple(left_out), ranking)


def rank_sites(
    graft: Graft, sites: Sequence[Site], program: Program, context: PassContext, share: float
) -> SiteRanking:
    """What each of `sites` costs when it alone is replaced, of which a `share` is to be taken.

    Sites that the graft refuses are not among them. What an earlier run measured is not measured again.
    """
    assert isinstance(graft, ChoosesLayers)
    started = time.perf_counter()
    context.progress(f"{graft.name}: ranking sites")
    probes = ranking_probes(program, context) if graft.rank == "recall" else []
    cache = RankingCache(ranking_digest(graft.ranked_as, program, context, probes, graft.reach))
    unknown = [site for site in sites if site.output.name not in cache.known]
    _measure(graft, unknown, program, context, probes, cache)
    costs = [cache.known[site.output.name] for site in sites if site.output.name in cache.known]
    return SiteRanking(
        rank=graft.rank,
        costs=tuple(costs),
        count=share_count(share, len(costs)),
        error_name=error_name(program),
        data=ranking_data(context, probes),
        seconds=time.perf_counter() - started,
        reused=len(sites) - len(unknown),
    )


def _measure(
    graft: Graft,
    sites: Sequence[Site],
    program: Program,
    context: PassContext,
    probes: Sequence[RecallProbe],
    cache: RankingCache,
) -> None:
    """Add to `cache` what each of `sites` costs that the graft has a stand-in for."""
    assert isinstance(graft, ChoosesLayers)
    place = {node: index for index, node in enumerate(program.graph.nodes)}
    ordered = sorted(sites, key=lambda site: place[site.output])
    meter: SiteMeter | None = None
    for index, (site, proposal) in enumerate(
        zip(ordered, graft.ranked_as.propose_all(ordered, program, context), strict=True), 1
    ):
        if isinstance(proposal, Refusal):
            continue
        meter = meter or SiteMeter(program, context, ordered, probes, graft.reach)
        context.progress(f"{graft.name}: what {site.name} costs alone, {index} of {len(ordered)}")
        cache.add(meter.cost(site, proposal.module, proposal.states))


def _left_out(site: Site, choice: LayerChoice, ranking: SiteRanking | None) -> Refusal:
    reason = f"layers={choice.text} leaves it out"
    if ranking is not None:
        ordered = ranking.ordered()
        place = next(index for index, cost in enumerate(ordered) if cost.node == site.output.name)
        reason += f": a cost of {ordered[place].score(ranking.rank):.3g} alone, place {place + 1} of {len(ordered)}"
    return Refusal(reason, site.output.name, site.name, site.kind)
