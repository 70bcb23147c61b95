"""Seconds inside a model: what a choice saves everywhere at once, shared out among its places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from budgeted_models import build
from rewrite_checks import captured, context_of

from compiler.budget import inside
from compiler.budget.inside import timed_inside
from compiler.budget.measuring import Candidate
from compiler.budget.places import Choice, Place, find_places
from compiler.budget.stand_alone import Figures
from compiler.budget.whole_model import WholeModel
from compiler.errors import CompilerError
from compiler.passes.linear.low_rank import LowRank
from compiler.passes.quantize import Quantize

INT8, HALF = Choice(Quantize()), Choice(LowRank(ratio=0.5))
MILLISECOND = 1e-3


@dataclass
class Timed:
    """Stands for a WholeModel of 10 ms, which takes so many with each choice everywhere; tells what was asked of it."""

    taken: Mapping[str, float]
    asked: list[tuple[str, int]]

    def unchanged(self, quantity: str) -> float:
        assert quantity == "latency"
        return 10 * MILLISECOND

    def of_mix(self, made: Sequence[tuple[Place, Choice]], quantities: Sequence[str]) -> list[float]:
        assert quantities == ["latency"]
        text = made[0][1].text
        self.asked.append((text, len(made)))
        if text not in self.taken:
            raise CompilerError("lowering", "no backend writes it", "Leave it out.")
        return [self.taken[text] * MILLISECOND]


@pytest.fixture(autouse=True)
def proposals_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put in is only told on: `Timed` knows how long it takes."""
    monkeypatch.setattr(inside, "propose_chosen", lambda pairs, program, context: pairs)


def seconds(alone: Mapping[str, Sequence[float]], taken: Mapping[str, float]) -> tuple[dict[str, list[float]], Timed]:
    """Milliseconds inside by choice ("" is what stands there), from those alone at each of the first parts."""
    module, inputs = build()
    program = captured(module, **inputs)
    parts = [place for place in find_places(program) if place.is_part]
    choices = {"": None, "int8": INT8, "half": HALF}
    candidates = [
        Candidate(parts[index], choices[name], 0.0, Figures(1, 1, one * MILLISECOND))
        for name, figures in alone.items()
        for index, one in enumerate(figures)
    ]
    timed = Timed({choices[name].text: one for name, one in taken.items() if choices[name] is not None}, [])
    found = timed_inside(candidates, cast(WholeModel, timed), program, context_of(program), "one model")
    told: dict[str, list[float]] = {name: [] for name in alone}
    for one in found:
        name = next(name for name, choice in choices.items() if choice == one.choice)
        told[name].append(cast(float, one.figures.seconds) / MILLISECOND)
    return told, timed


def test_a_saving_is_shared_out_as_places_save_alone() -> None:
    told, timed = seconds({"": [4.0, 4.0], "int8": [1.0, 3.0]}, {"int8": 8.0})
    assert told[""] == pytest.approx([4.0, 4.0])
    assert told["int8"] == pytest.approx([4.0 - 2.0 * 3 / 4, 4.0 - 2.0 * 1 / 4])
    assert timed.asked == [(INT8.text, 2)]


def test_what_is_slower_inside_takes_more() -> None:
    told, _ = seconds({"": [4.0, 4.0], "int8": [1.0, 3.0]}, {"int8": 11.0})
    assert sum(told["int8"]) == pytest.approx(8.0 + 1.0)


def test_layers_alone_never_take_more_than_the_model() -> None:
    told, _ = seconds({"": [16.0, 4.0], "half": [16.0, 4.0]}, {})
    assert told[""] == told["half"] == pytest.approx([8.0, 2.0])


def test_what_saves_next_to_nothing_is_not_timed() -> None:
    told, timed = seconds({"": [5.0, 5.0], "int8": [4.95, 4.95], "half": [2.0, 5.0]}, {"half": 6.0})
    assert timed.asked == [(HALF.text, 2)]
    assert told["int8"] == pytest.approx([4.95, 4.95])
    assert told["half"] == pytest.approx([1.0, 5.0])


def test_what_cannot_be_lowered_beside_its_neighbours_keeps_its_figures() -> None:
    told, timed = seconds({"": [4.0, 4.0], "int8": [1.0, 3.0]}, {})
    assert timed.asked == [(INT8.text, 2)]
    assert told["int8"] == pytest.approx([1.0, 3.0])


def test_what_was_timed_is_not_timed_again() -> None:
    alone = {"": [4.0, 4.0], "int8": [1.0, 3.0]}
    first, _ = seconds(alone, {"int8": 8.0})
    again, timed = seconds(alone, {"int8": 2.0})
    assert again == first
    assert timed.asked == []


def test_a_broken_cache_is_measured_anew(tmp_path: Path) -> None:
    alone: dict[str, Sequence[float]] = {"": [4.0, 4.0], "int8": [1.0, 3.0]}
    seconds(alone, {"int8": 8.0})
    kept: list[Any] = list(tmp_path.rglob(inside.FILE_NAME))
    assert len(kept) == 1
    kept[0].write_text('["truncated', encoding="utf-8")
    _, timed = seconds(alone, {"int8": 8.0})
    assert timed.asked == [(INT8.text, 2)]
