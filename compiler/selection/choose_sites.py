"""Applies `layers=`: the sites of a Program that a graft is to replace, and why the others are left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import CompilerError
from compiler.rewriting import Graft
from compiler.selection.layer_choice import ChoosesLayers, LayerChoice
from compiler.sites import Refusal, Site


@dataclass(frozen=True)
class ChosenSites:
    """The sites that are to be replaced, in order, and a refusal for each of the others."""

    sites: tuple[Site, ...]
    left_out: tuple[Refusal, ...] = ()


def choose_sites(graft: Graft, sites: Sequence[Site]) -> ChosenSites:
    """The sites that the `layers` of `graft` name; all where it has no such option.

    Raises CompilerError where a term names no site.
    """
    if not isinstance(graft, ChoosesLayers) or not sites:
        return ChosenSites(tuple(sites))
    choice = LayerChoice.parse(graft.layers)
    try:
        chosen = choice.candidates(sites)
    except ValueError as error:
        doing, hint = f"choosing the layers of {graft.name}", "The sites and their names: compile inspect MODEL"
        raise CompilerError(doing, f"layers={choice.text}: {error}", hint) from None
    if choice.share is not None:
        doing, hint = f"choosing the layers of {graft.name}", "Name layers for now: all, every-4th, 3+5+7, globs."
        raise CompilerError(doing, f"layers={choice.text}: sites are not ranked yet", hint)
    kept = {site.output for site in chosen}
    left_out = [_left_out(site, f"layers={choice.text} leaves it out") for site in sites if site.output not in kept]
    return ChosenSites(tuple(chosen), tuple(left_out))


def _left_out(site: Site, reason: str) -> Refusal:
    return Refusal(reason, site.output.name, site.name, site.kind)
