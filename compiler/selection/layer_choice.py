"""`layers=`: the sites that a graft replaces, in words.

    all           every site                            3+5+7         sites of these layers, counted from 0
    every-4th     of every fourth layer: 3, 7, ...      *.3.*+*.attn  sites whose names match a glob
    not-0+not-29  all but these                         auto-0.75     three quarters of what the other terms leave:
                                                                      those that cost least (compiler.selection.ranking)

A site's layer is the first number in its name, as in `model.layers.7.self_attn`; a head has none. Where no name has a
number, as in most ONNX files, it is the site's place among the graft's sites.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from compiler.rewriting import Graft
from compiler.sites import Site

AUTO, NOT = "auto-", "not-"
EVERY = re.compile(r"every-([1-9]\d*)(st|nd|rd|th)")
WORD = re.compile(r"[\w.*?\[\]!/-]+")

Rank = Literal["recall", "kl"]


@dataclass(frozen=True)
class ChoosesLayers:
    """The options of a graft that replaces some sites only. A `__post_init__` of its own calls this one."""

    layers: Annotated[
        str, "sites to replace: all, every-4th, 3+5+7, globs, not-0; auto-0.75: three quarters, what costs least"
    ] = "all"
    rank: Annotated[Rank, "what auto- ranks by: recall: lost recall and KL; kl: KL alone"] = "recall"

    def __post_init__(self) -> None:
        LayerChoice.parse(self.layers)

    @property
    def reach(self) -> int:
        """How many tokens back a stand-in sees what the site saw: recall is measured from twice as far."""
        return int(getattr(self, "window", None) or 0)

    @property
    def ranked_as(self) -> Graft:
        """The graft whose stand-ins are measured when sites are ranked: as a rule this one.

        A cheaper one that costs about the same is measured once for all grafts that name it.
        """
        assert isinstance(self, Graft)
        return self


@dataclass(frozen=True)
class LayerChoice:
    """`layers=` taken apart. `share` is that of `auto-`; None where every site that the terms leave is replaced."""

    text: str
    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> LayerChoice:
        """Read `layers=`. Raises ValueError for what it cannot mean."""
        terms = [term for term in text.split("+") if term]
        shares = [_share(term) for term in terms if term.startswith(AUTO)]
        if len(shares) > 1:
            raise ValueError(f"layers={text} has {AUTO} twice")
        named = [term for term in terms if not term.startswith(AUTO)]
        unwanted = tuple(term.removeprefix(NOT) for term in named if term.startswith(NOT))
        wanted = tuple(term for term in named if not term.startswith(NOT))
        for term in (*wanted, *unwanted):
            if not WORD.fullmatch(term) or (term.startswith("every-") and not EVERY.fullmatch(term)):
                raise ValueError(f"layers={text}: {term!r} is no number, glob, every-Nth, all, not-... or auto-...")
        if not terms:
            raise ValueError("layers= is empty: write all, 3+5+7, every-4th, a glob or auto-0.75")
        return cls(text, wanted, unwanted, shares[0] if shares else None)

    def candidates(self, sites: Sequence[Site]) -> list[Site]:
        """The sites that the terms other than `auto-` name, in order.

        Raises ValueError for a term that names none of them.
        """
        numbers = layer_numbers(sites)
        layers = sorted({number for number in numbers if number is not None})
        for term in (*self.wanted, *self.unwanted):
            if not any(_names(term, site, number, layers) for site, number in zip(sites, numbers, strict=True)):
                raise ValueError(f"{term!r} names none of {_listed(sites, layers)}")
        return [
            site
            for site, number in zip(sites, numbers, strict=True)
            if (not self.wanted or any(_names(term, site, number, layers) for term in self.wanted))
            and not any(_names(term, site, number, layers) for term in self.unwanted)
        ]


def layer_numbers(sites: Sequence[Site]) -> list[int | None]:
    """The layer of each site: the first number in its name, or none; the places of all, where no name has a number."""
    found = [next((int(part) for part in site.name.split(".") if part.isdecimal()), None) for site in sites]
    return found if any(number is not None for number in found) else list(range(len(sites)))


def _names(term: str, site: Site, number: int | None, layers: Sequence[int]) -> bool:
    """Whether `term` names a site of layer `number`, one of `layers` or none."""
    if term == "all":
        return True
    if term.isdecimal():
        return int(term) == number
    if every := EVERY.fullmatch(term):
        return number is not None and (layers.index(number) + 1) % int(every[1]) == 0
    return fnmatchcase(site.name, term)


def _listed(sites: Sequence[Site], layers: Sequence[int]) -> str:
    if not sites:
        return "no sites"
    return f"{len(sites)} sites, of layers {layers[0]} to {layers[-1]}, such as {sites[0].name}"


def _share(term: str) -> float:
    try:
        share = float(term.removeprefix(AUTO))
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ValueError(f"layers={term}: a share is above 0 and at most 1, as in auto-0.75")
    return share
