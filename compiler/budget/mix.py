"""The graft behind `--budget`: chooses a stand-in for each site among those of all grafts, and puts the chosen ones in.

    measure     every candidate of every place: its cost, bytes, FLOPs, seconds          (measuring.py, inside.py)
    allocate    one candidate a place, at least cost within the limits                   (allocation.py)
    propose     the chosen stand-ins in graph order, each fitted to what those before it leave
    lower       the result, on trial: where it is over a limit after all, the limit is lowered by that, and again; and
                raised half way back where much less is used than may be

A recipe names what was chosen, and nothing is measured then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from compiler.budget.allocation import Offer, OutOfReachError, allocate
from compiler.budget.chosen_mix import NAME, ChosenMix, Key, propose_chosen
from compiler.budget.inside import timed_inside
from compiler.budget.limits import Limit, read_limits
from compiler.budget.measuring import Candidate, Measured, Measuring
from compiler.budget.places import Choice, Place, choices_for, find_places, offers_anything
from compiler.budget.record import ChosenPlace, FrontierPoint, LimitRecord, MixRecord
from compiler.budget.whole_model import WholeModel
from compiler.errors import CompilerError, nearest_hint
from compiler.rewriting import BUDGETED_KINDS, Graft, PassContext, Replacement
from compiler.sites import Refusal, Site

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.registry import Registry

MOST_ROUNDS = 8
"""Mixes that are lowered on trial, at most, where one was over a limit."""
NOISE = 0.01
"""Part of a latency by which it may be over its limit: it is no more certain than that."""
CLOSE = 0.95
"""Part of what is allowed from which on a mix found after one that was over its limit is not made any larger."""
FRONTIER_POINTS = 12
DOING = "choosing what stands where for --budget"


@dataclass(frozen=True)
class BudgetedMix(Graft):
    """Chooses among what grafts offer, within limits, at least cost to the outputs."""

    name: ClassVar[str] = NAME
    site_kinds: ClassVar[tuple[str, ...]] = BUDGETED_KINDS
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)

    limits: Annotated[tuple[str, ...], "at most so much: size=0.35, size=20MB, flops=0.5, latency=0.6"] = ()
    grafts: Annotated[tuple[str, ...], "what may be chosen: names of grafts, or grafts with options; none: all"] = ()
    mix: Annotated[tuple[str, ...], "what was chosen, as `site: graft`; then nothing is measured"] = ()

    def __post_init__(self) -> None:
        if not read_limits(self.limits):
            raise ValueError("it has no limits: write --budget size=0.35")

    def check(self, registry: Registry) -> None:
        """That all grafts are known, with options that they have."""
        known = registry.passes()
        for text in (*self.grafts, *(one.rpartition(": ")[2] for one in self.mix)):
            _graft(text, known)

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """What the whole choice has for one site."""
        return self.planned(program, context)[0].propose(site, program, context)

    @classmethod
    def candidates(cls, kind: str) -> tuple[Graft, ...]:
        """None: it is what chooses."""
        return ()

    def planned(self, program: Program, context: PassContext) -> tuple[Graft, MixRecord | None]:
        """The chosen stand-ins, and why these. Raises CompilerError where no choice keeps to the limits."""
        if context.backend is None:
            raise CompilerError(DOING, "nothing says what it is to be lowered with", "Give --budget to: compile MODEL")
        places = find_places(program)
        if self.mix:
            chosen = self._as_said(places, context)
            made = propose_chosen(chosen, program, context)
            rows = (ChosenPlace(place.name, place.kind, choice.text) for place, choice in chosen)
            return ChosenMix(made), MixRecord(tuple(rows))
        return _Search(self, places, program, context).found()

    def choices(self, context: PassContext) -> dict[str, list[Choice]]:
        """What may stand at places of each kind."""
        if not self.grafts:
            return {kind: choices_for(kind, context.grafts.values()) for kind in BUDGETED_KINDS}
        plain = [context.grafts[text] for text in self.grafts if text in context.grafts]
        given = [_graft(text, context.grafts) for text in self.grafts if text not in context.grafts]
        return {kind: choices_for(kind, plain, given) for kind in BUDGETED_KINDS}

    def _as_said(self, places: Sequence[Place], context: PassContext) -> list[tuple[Place, Choice]]:
        by_name = {place.name: place for place in places}
        found = []
        for text in self.mix:
            name, _, graft = text.rpartition(": ")
            if name not in by_name:
                hint = nearest_hint(name, by_name, "Leave mix out, and it is chosen anew.")
                raise CompilerError("reading the mix of a recipe", f"the model has no site {name!r}", hint)
            found.append((by_name[name], Choice(_graft(graft, context.grafts))))
        return found


class _Search:
    """From candidates to the mix that keeps to the limits, lowered on trial."""

    def __init__(self, budget: BudgetedMix, places: Sequence[Place], program: Program, context: PassContext) -> None:
        self._started = time.perf_counter()
        self._program, self._context = program, context
        self._limits = read_limits(budget.limits)
        timed = any(limit.quantity == "latency" for limit in self._limits)
        self._part_count = sum(place.is_part for place in places)
        self._whole = WholeModel(program, context, timed=timed)
        measuring = Measuring(program, context, places, budget.choices(context), timed)
        self._measured: Measured = measuring.run()
        if timed:
            inside = timed_inside(self._measured.candidates, self._whole, program, context, measuring.digest)
            self._measured = replace(self._measured, candidates=inside)

    def found(self) -> tuple[Graft, MixRecord]:
        """The stand-ins and the record."""
        whole = [self._whole.amount(limit.quantity) for limit in self._limits]
        allowed = [limit.of(amount) for limit, amount in zip(self._limits, whole, strict=True)]
        room, over, best = list(allowed), None, None
        tried: list[list[Candidate]] = []
        while len(tried) < MOST_ROUNDS:
            try:
                chosen = self._nearest(room) if tried else self._allocated(room)
            except OutOfReachError as error:
                if not tried:
                    raise self._too_little(error, whole) from None
                break
            if chosen in tried:
                break
            tried.append(chosen)
            pairs = [(one.place, one.choice) for one in chosen if one.choice is not None]
            made = propose_chosen(pairs, self._program, self._context)
            self._context.progress(f"budget: lowering the mix on trial, {len(tried)} of {MOST_ROUNDS} at most")
            uses = self._whole.of_mix(made, [limit.quantity for limit in self._limits])
            rows = tuple(
                LimitRecord(limit.quantity, str(limit), w, a, self._expected(chosen, limit), use)
                for limit, w, a, use in zip(self._limits, whole, allowed, uses, strict=True)
            )
            unchanged = [self._whole.unchanged(limit.quantity) for limit in self._limits]
            if all(map(_held, rows)):
                best = _Held(room, chosen, made, rows)  # of more room than one before it, so of no more cost
                if over is None or any(map(_is_close, rows)):
                    break
            else:
                over = room
            if best is not None and over is not None:
                room = [(held + more) / 2 for held, more in zip(best.room, over, strict=True)]
            else:
                room = [_room(*one) for one in zip(room, rows, unchanged, strict=True)]
        if best is None:
            raise self._not_held(rows)
        return ChosenMix(best.made), self._record(best.chosen, best.rows, allowed)

    def _allocated(self, allowed: Sequence[float]) -> list[Candidate]:
        """One candidate for each part, or for several, at least cost."""
        candidates = self._measured.candidates
        offers = [
            Offer(one.place.covers, one.cost, tuple(_use(one, limit) for limit in self._limits)) for one in candidates
        ]
        room = [most - self._rest(limit) for most, limit in zip(allowed, self._limits, strict=True)]
        return [candidates[index] for index in allocate(offers, self._part_count, room)]

    def _nearest(self, allowed: Sequence[float]) -> list[Candidate]:
        """As `_allocated`, or where that is out of reach the least that is in reach."""
        try:
            return self._allocated(allowed)
        except OutOfReachError as error:
            reach = zip(allowed, self._limits, error.least, strict=True)
            least = (a if found is None else self._rest(limit) + found * (1 + 1e-6) for a, limit, found in reach)
            return self._allocated([max(a, one) for a, one in zip(allowed, least, strict=True)])

    def _rest(self, limit: Limit) -> float:
        """What is used outside of all places."""
        replaced = sum(_use(one, limit) for one in self._measured.candidates if one.choice is None)
        return self._whole.unchanged(limit.quantity) - replaced

    def _expected(self, chosen: Sequence[Candidate], limit: Limit) -> float:
        return self._rest(limit) + sum(_use(one, limit) for one in chosen)

    def _too_little(self, error: OutOfReachError, whole: Sequence[float]) -> CompilerError:
        least = [
            None if reach is None else limit.share(self._rest(limit) + reach, amount)
            for limit, reach, amount in zip(self._limits, error.least, whole, strict=True)
        ]
        told = [f"{limit.quantity}={one}" for limit, one in zip(self._limits, least, strict=True) if one is not None]
        asked = " and ".join(map(str, self._limits))
        beside = ", the other limits as they are" if len(self._limits) > 1 else ""
        reached = f"the smallest is {' or '.join(told)}{beside}" if told else "not even one of them can be held"
        hint = "Allow more, or more grafts: those of a plugin, or all by naming none in --passes."
        return CompilerError(DOING, f"no choice of stand-ins reaches {asked}: {reached}", hint)

    def _not_held(self, rows: Sequence[LimitRecord]) -> CompilerError:
        reached = [limit.share(row.measured, row.whole) for limit, row in zip(self._limits, rows, strict=True)]
        told = " and ".join(f"{limit.quantity}={one}" for limit, one in zip(self._limits, reached, strict=True))
        asked = " and ".join(map(str, self._limits))
        hint = "Allow more, or more grafts. What was measured is kept: another --budget takes little time."
        return CompilerError(DOING, f"no mix was found that keeps to {asked}: the last, lowered, has {told}", hint)

    def _record(self, chosen: Sequence[Candidate], limits: tuple[LimitRecord, ...], allowed: list[float]) -> MixRecord:
        from compiler.selection.site_meter import error_name

        original = {one.place.covers[0]: one.figures.bytes for one in self._measured.candidates if one.choice is None}
        rows = tuple(
            ChosenPlace(
                one.place.name,
                one.place.kind,
                "" if one.choice is None else one.choice.text,
                one.cost,
                one.figures.bytes,
                sum(original.get(part, 0) for part in one.place.covers),
            )
            for one in chosen
        )
        return MixRecord(
            places=rows,
            limits=limits,
            expected=sum(one.cost for one in chosen),
            error_name=error_name(self._program),
            frontier=tuple(self._frontier(allowed)),
            corrections={f"{text} ({kind})": by for (kind, text), by in sorted(self._measured.corrections.items())},
            candidate_count=sum(one.choice is not None for one in self._measured.candidates),
            reused=self._measured.taken_from_cache,
            seconds=time.perf_counter() - self._started,
        )

    def _frontier(self, allowed: list[float]) -> Iterator[FrontierPoint]:
        """The least cost by the amount of the first quantity, between the least that can be reached and all."""
        limit, others = self._limits[0], allowed[1:]
        try:
            self._allocated([-1e300, *others])
        except OutOfReachError as error:
            reach = error.least[0]
        if reach is None:
            return
        least, whole = reach + self._rest(limit), self._whole.unchanged(limit.quantity)
        for step in range(FRONTIER_POINTS):
            amount = least * (1 + 1e-6) * (whole / least) ** (step / (FRONTIER_POINTS - 1))
            chosen = self._allocated([amount, *others])
            yield FrontierPoint(self._expected(chosen, limit), sum(one.cost for one in chosen))


@dataclass(frozen=True)
class _Held:
    """A mix that keeps to the limits as lowered on trial, and the room that it was chosen in."""

    room: Sequence[float]
    chosen: Sequence[Candidate]
    made: Mapping[Key, Replacement | Refusal]
    rows: tuple[LimitRecord, ...]


def _is_close(row: LimitRecord) -> bool:
    """Whether little is left of what a limit allows."""
    return row.measured >= CLOSE * row.allowed


def _held(row: LimitRecord) -> bool:
    """Whether a limit is kept to, as far as that can be measured."""
    noise = NOISE if row.quantity == "latency" else 0.0
    return row.measured <= row.allowed * (1 + noise)


def _room(room: float, row: LimitRecord, unchanged: float) -> float:
    """What is allowed of the sum after a mix that was lowered: less, where it was over its limit, by as much or by what
    it takes if of every saving that is expected only that part comes true which did here; less than it in any case.
    """
    if _held(row):
        return room
    expected, saved = unchanged - row.expected, unchanged - row.measured
    scaled = unchanged - (unchanged - row.allowed) * expected / saved if saved > 0 else room
    return min(scaled, room - (row.measured - row.allowed), row.expected * (1 - 1e-6))


def _use(one: Candidate, limit: Limit) -> float:
    """What a candidate uses of a limited quantity."""
    if limit.quantity == "latency":
        seconds = one.figures.seconds
        assert seconds is not None
        return seconds
    return float(one.figures.bytes if limit.quantity == "size" else one.figures.flops)


def _graft(text: str, known: Mapping[str, type]) -> Graft:
    """The graft that a text like `quantize:bits=4` names. Raises CompilerError."""
    from compiler.options import build
    from compiler.recipe import parse_passes

    doing = f"reading what --budget may choose, {text!r}"
    specs = parse_passes(text)
    offering = sorted(name for name, cls in known.items() if issubclass(cls, Graft) and offers_anything(cls))
    if len(specs) != 1 or not issubclass(known.get(specs[0].name, object), Graft):
        hint = nearest_hint(text.partition(":")[0], offering, f"Grafts to choose from: {', '.join(offering)}.")
        raise CompilerError(doing, "it names no graft", hint)
    built: Graft = build(known[specs[0].name], specs[0].options)
    return built
