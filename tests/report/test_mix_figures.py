"""What a budget chose, in the terminal, on the page and as plain values."""

from __future__ import annotations

import re

from report_documents import mix, report
from test_ranking_figures import terminal

from compiler.budget.record import ChosenPlace, FrontierPoint, LimitRecord, MixRecord
from compiler.report import formats
from compiler.report.charts import frontier_chart
from compiler.report.html_page import html_page


def test_the_terminal_lists_choices_the_most_bytes_first() -> None:
    shown = terminal(report("graft"))
    assert re.search(r"graft, chosen +sites +bytes before +bytes now +expected cost", shown)
    assert re.search(r"as it is +1 +4\.0 MB +4\.0 MB +0\b", shown)
    assert re.search(r"graft +2 +8\.0 MB +1\.0 MB +0\.003", shown)
    assert shown.index("as it is") < shown.index("graft    ", shown.index("as it is"))


def test_it_says_what_was_expected_and_what_was_found() -> None:
    shown = " ".join(terminal(report("graft")).split())
    assert "size=graft: 6.0 MB allowed, 5.0 MB expected, 5.1 MB found, of 12.0 MB" in shown
    assert "latency=graft: 12.0 ms allowed, 11.0 ms expected, 11.5 ms found, of 20.0 ms" in shown
    assert "graft: 0.003 of graft expected, 0.002 measured on data that no pass has seen" in shown
    assert "17 candidates measured, 3 of them by an earlier run; 95.5 s in all" in shown


def test_the_mix_of_a_recipe_has_nothing_to_expect() -> None:
    document = report("graft")
    document["passes"][-1]["mix"] = MixRecord((ChosenPlace("site", "linear", "quantize"),)).to_json()
    assert "graft: the mix is the recipe's; nothing was searched for" in " ".join(terminal(document).split())
    assert "<h3>Budget: " not in html_page(document)


def test_the_page_draws_the_frontier_and_marks_the_choice() -> None:
    page = html_page(report("graft"))
    assert "Budget: size=graft" in page
    assert "What the budget chose" in page
    found = mix("graft")
    points = [(point["amount"], point["cost"]) for point in found["frontier"]]
    drawn = str(frontier_chart(points, (5e6, 0.003), formats.megabytes))
    assert drawn.count('<circle class="a"') == 3
    assert drawn.count('<circle class="d"') == 1
    assert "chosen, 5.0 MB: 0.003" in drawn
    heights = [float(y) for y in re.findall(r'<circle class="a" cx="[\d.]+" cy="([\d.]+)"', drawn)]
    assert heights == sorted(heights), "less room costs more, and stands higher"
    assert "nan" not in str(frontier_chart([], (0.0, 0.0), formats.megabytes))


def test_a_record_names_what_a_recipe_needs() -> None:
    places = (ChosenPlace("layers.0.up", "linear", "quantize:bits=4"), ChosenPlace("head", "linear", ""))
    limit = LimitRecord("size", "size=0.3", 100.0, 30.0, 29.0, 29.5)
    record = MixRecord(places, (limit,), 0.1, "KL", (FrontierPoint(20.0, 0.3),))
    assert record.texts == ("layers.0.up: quantize:bits=4",)
    assert record.to_json()["limits"][0]["measured"] == 29.5
