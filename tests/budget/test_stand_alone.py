"""Figures of stand-ins alone: what a call of nothing takes is in none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.budget import stand_alone
from compiler.budget.stand_alone import LEAST_SECONDS, StandAlone
from compiler.target import Target


def timed_as(seconds: Mapping[str, float], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Let calls take so long, each still being made once; the names of those that took turns."""
    turns: list[tuple[str, ...]] = []

    def timed(calls: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        turns.append(tuple(calls))
        for call in calls.values():
            call()
        return {name: [seconds[name]] * 3 for name in calls}

    monkeypatch.setattr(stand_alone, "alternating_seconds", timed)
    return turns


def figures(*, timed: bool = True) -> stand_alone.Figures:
    alone = StandAlone(OnnxRuntime(), Target.parse("cpu"), timed=timed)
    shapes = [((2, 8), torch.float32)]
    return alone.figures("narrow", nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)), nn.Linear(8, 8), shapes, shapes)


def test_a_call_of_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = timed_as({"ours": 5e-5, "theirs": 7e-5, "nothing": 4e-5}, monkeypatch)
    found = figures()
    assert turns == [("ours", "theirs", "nothing")]
    assert (found.seconds, found.original_seconds) == (pytest.approx(1e-5), pytest.approx(3e-5))
    assert found.beside(6e-5).seconds == pytest.approx(2e-5)


def test_no_stand_in_takes_less_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timed_as({"ours": 3e-5, "theirs": 7e-5, "nothing": 4e-5}, monkeypatch)
    assert figures().seconds == LEAST_SECONDS


def test_nothing_is_timed_where_no_limit_asks_for_it() -> None:
    found = figures(timed=False)
    assert (found.seconds, found.original_seconds) == (None, None)
    assert found.flops == 2 * 2 * (8 * 2 + 2 * 8)
