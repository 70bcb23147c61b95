"""Where a budget stands among the passes that were asked for, and the recipe that makes its choice again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compiler.budget.chosen_mix import NAME
from compiler.budget.places import offers_anything
from compiler.recipe import PassSpec, Recipe, parse_passes
from compiler.rewriting import Graft

if TYPE_CHECKING:
    from compiler.pipeline import PassRecord
    from compiler.rewriting import Pass


def with_budget(
    specs: Sequence[PassSpec], limits: Sequence[str], known: Mapping[str, type[Pass]], pipelines: Mapping[str, str]
) -> tuple[PassSpec, ...]:
    """The passes with a budget in place of the first graft that it may choose, or at the end.

    Grafts that offer candidates are what it may choose, with the options that are written or else all they offer; where
    none is named, all that there are. A budget that stands there already gets these limits.
    """
    kept: list[PassSpec] = []
    allowed: list[str] = []
    place: int | None = None
    for spec in _expanded(specs, known, pipelines):
        cls = known.get(spec.name)
        if spec.name == NAME:
            allowed += spec.options.get("grafts") or ()
        elif cls is not None and issubclass(cls, Graft) and offers_anything(cls):
            allowed.append(str(spec))
        else:
            kept.append(spec)
            continue
        place = len(kept) if place is None else place
    budget = PassSpec(NAME, {"limits": tuple(limits), "grafts": tuple(allowed)})
    place = len(kept) if place is None else place
    return (*kept[:place], budget, *kept[place:])


def _expanded(
    specs: Sequence[PassSpec], known: Mapping[str, type[Pass]], pipelines: Mapping[str, str]
) -> Iterator[PassSpec]:
    for spec in specs:
        if spec.name in known or spec.name not in pipelines or spec.options:
            yield spec
        else:
            inner = {name: text for name, text in pipelines.items() if name != spec.name}
            yield from _expanded(parse_passes(pipelines[spec.name]), known, inner)


def with_mix(recipe: Recipe, records: Sequence[PassRecord]) -> Recipe:
    """The recipe with what its budget chose, so that it is not searched for again."""
    mixes = {record.name: record.result.mix for record in records if record.result.mix is not None}
    specs = tuple(
        PassSpec(spec.name, {**spec.options, "mix": mixes[NAME].texts}) if spec.name in mixes else spec
        for spec in recipe.passes or ()
    )
    return replace(recipe, passes=specs)
