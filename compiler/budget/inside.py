"""What stand-ins save inside the model, where layers are fused, layouts kept and neighbours shrink with them.

A layer that runs alone says little of that: half of the channels save more than their own convolutions, int8 less than
its products. So each choice that promises to save is put in wherever it may stand, all at once, and the model with it
is timed beside the model as it is. What that saves is shared out among the places by what each saves alone; where that
is next to nothing, by what each takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.budget.chosen_mix import propose_chosen
from compiler.content_digest import text_digest
from compiler.errors import CompilerError
from compiler.evidence.trial_lowering import machine_digest
from compiler.kept_work import kept_folder, write_whole

if TYPE_CHECKING:
    from compiler.budget.measuring import Candidate
    from compiler.budget.whole_model import WholeModel
    from compiler.program import Program
    from compiler.rewriting import PassContext

KIND, FILE_NAME = "budgets", "inside.json"
WORTH_TIMING = 0.02
"""A choice is timed inside the model where, each place alone, it saves at least this part of the model's time."""
MOST_CHOICES = 12
"""Choices that are timed inside the model, those first that save most alone."""
NEXT_TO_NOTHING = 0.05
"""Part of what places take below which what they save alone says nothing about how a saving is shared out."""


def timed_inside(
    candidates: Sequence[Candidate], whole: WholeModel, program: Program, context: PassContext, digest: str
) -> tuple[Candidate, ...]:
    """The candidates with the seconds that each takes inside the model; `digest` names the model and its data."""
    alone = sum(_seconds(one) for one in candidates if one.choice is None)
    whole_seconds = whole.unchanged("latency")
    pace = min(1.0, whole_seconds / alone) if alone else 1.0  # neighbours that are fused take less than each alone
    found = [_taking(one, pace * _seconds(one)) for one in candidates]
    original = {one.place.covers[0]: _seconds(one) for one in found if one.choice is None}
    shared = _Shared(original, whole_seconds)
    kept = kept_folder(KIND, text_digest(digest, machine_digest())) / FILE_NAME
    groups = shared.worth_timing(found)
    saved = _saved(groups, whole, program, context, kept)
    return tuple(shared.told(one, groups, saved) for one in found)


class _Shared:
    """How a saving is shared out among the places of a choice."""

    def __init__(self, original: Mapping[int, float], whole_seconds: float) -> None:
        self._original, self._whole = original, whole_seconds

    def worth_timing(self, candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
        """By choice, those candidates of it that can stand in the model together."""
        by_text: dict[str, list[Candidate]] = {}
        for one in candidates:
            if one.choice is not None:
                others = by_text.setdefault(one.choice.text, [])
                if not any(set(one.place.covers) & set(other.place.covers) for other in others):
                    others.append(one)
        promised = {text: sum(map(self._saves_alone, group)) for text, group in by_text.items()}
        worth = [text for text, seconds in promised.items() if seconds >= WORTH_TIMING * self._whole]
        worth.sort(key=lambda text: -promised[text])
        return {text: by_text[text] for text in worth[:MOST_CHOICES]}

    def told(self, one: Candidate, groups: Mapping[str, Sequence[Candidate]], saved: Mapping[str, float]) -> Candidate:
        """A candidate; where its choice was timed, with its part of what that saved, a share of the model's time."""
        if one.choice is None or one.choice.text not in saved:
            return one
        group = groups[one.choice.text]
        takes, saves = (sum(map(of, group)) for of in (self._takes, self._saves_alone))
        part = self._takes if saves < NEXT_TO_NOTHING * takes else self._saves_alone
        total = saved[one.choice.text] * self._whole
        return _taking(one, self._takes(one) - total * part(one) / sum(map(part, group)))

    def _takes(self, one: Candidate) -> float:
        """Seconds of what stands at a place."""
        return sum(self._original.get(part, 0.0) for part in one.place.covers)

    def _saves_alone(self, one: Candidate) -> float:
        return max(0.0, self._takes(one) - _seconds(one))


def _saved(
    groups: Mapping[str, Sequence[Candidate]], whole: WholeModel, program: Program, context: PassContext, kept: Path
) -> dict[str, float]:
    """By choice, the share of the model's time that it saves everywhere. What is known is not timed again."""
    known = _read(kept)
    seconds = whole.unchanged("latency")
    for index, (text, group) in enumerate(groups.items(), 1):
        if text in known:
            continue
        context.progress(f"budget: timing the model with {text}, {index} of {len(groups)}")
        pairs = [(one.place, one.choice) for one in group if one.choice is not None]
        try:
            (taken,) = whole.of_mix(propose_chosen(pairs, program, context), ["latency"])
        except CompilerError:  # what a plugin stands in may be written alone and not beside its neighbours
            continue
        known[text] = 1.0 - taken / seconds
        write_whole(kept, lambda path: path.write_text(json.dumps(known), encoding="utf-8"))
    return {text: known[text] for text in groups if text in known}


def _taking(one: Candidate, seconds: float) -> Candidate:
    return replace(one, figures=replace(one.figures, seconds=seconds))


def _seconds(one: Candidate) -> float:
    seconds = one.figures.seconds
    assert seconds is not None
    return seconds


def _read(path: Path) -> dict[str, float]:
    """Shares by choice; none where the file is missing or not what this code writes."""
    try:
        return {str(text): float(share) for text, share in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
