"""Figures of language models, and probes, in the terminal, on the page and in the manifest."""

from __future__ import annotations

import io
import re

import pytest
from report_documents import language_report, report
from rich.console import Console

from compiler.report import formats
from compiler.report.html_page import html_page
from compiler.report.terminal_report import compile_summary


def terminal(document: dict[str, object]) -> str:
    """The summary as a wide terminal shows it."""
    console = Console(file=io.StringIO(), width=160)
    for part in compile_summary(document | {"artifact": "out"}):
        console.print(part)
    return console.file.getvalue()


def test_the_terminal_shows_perplexity_and_divergence_of_language_models_alone() -> None:
    shown = terminal(language_report())
    assert re.search(r"perplexity +ratio +KL, nats +top-1", shown)
    assert re.search(r"captured +24.20 ", shown)
    assert re.search(r"lowered .* 24.79 +x1.0243 +0.0312 +90.2 %", shown)
    assert "mean cosine" not in shown
    assert "measured on 8 windows of " in shown
    other = terminal(report())
    assert "perplexity" not in other
    assert "mean cosine" in other
    assert "measured on 64 samples of " in other


def test_the_terminal_shows_probes_where_there_are_any() -> None:
    assert "probes: needle 0.875 (captured: needle 1)" in terminal(report("needle"))
    unchanged = report("needle")
    unchanged["after"]["probes"] = unchanged["before"]["probes"]
    assert "probes: needle 1\n" in terminal(unchanged)
    for side in ("before", "after"):
        unchanged[side]["probes"] = {}
    assert "probes:" not in terminal(unchanged)


def test_the_page_shows_them_too() -> None:
    page = html_page(language_report())
    for text in ("24.79", "x1.0243; was 24.20", "0.0312", "of 2,048 tokens", "KL, nats", "8 windows of"):
        assert text in page
    assert "Scores before any pass" in page
    other = html_page(report())
    assert "Perplexity" not in other
    assert "64 samples of" in other


def test_a_broken_model_is_shown_without_figures() -> None:
    document = language_report()
    for one in (document["after"]["fidelity"], document["payload"]):
        one.update(perplexity=None, perplexity_ratio=None, kl_divergence=None)
    assert re.search(r"lowered .* - +- +- ", terminal(document))
    assert "Mean cosine" in html_page(document)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.perplexity(24.2049), "24.20"),
        (formats.perplexity(49152.4), "49,152"),
        (formats.ratio(1.02996), "x1.0300"),
        (formats.nats(0.031234), "0.0312"),
        (formats.nats(3e-8), "0"),
        (formats.scores({"copying": 0.85483, "needle": 1.0}), "copying 0.855, needle 1"),
    ],
)
def test_figures_are_written_short(written: str, expected: str) -> None:
    assert written == expected
