"""Rankings of sites in the terminal, on the page and as plain values."""

from __future__ import annotations

import io
import json
import math
import re

from report_documents import ranking, report
from rich.console import Console

from compiler.report.charts import COLUMN, ranking_chart
from compiler.report.html_page import html_page
from compiler.report.terminal_report import LISTED_SITES, compile_summary
from compiler.selection.ranking import SiteCost, SiteRanking, share_count


def terminal(document: dict[str, object]) -> str:
    """The summary as a wide terminal shows it."""
    console = Console(file=io.StringIO(), width=160)
    for part in compile_summary(document | {"artifact": "out"}):
        console.print(part)
    return console.file.getvalue()


def test_the_terminal_lists_sites_the_dearest_first() -> None:
    shown = terminal(report("graft"))
    assert re.search(r"graft, sites +cost alone +KL +copying, nats +needle, nats", shown)
    broken, dear, cheap = (shown.index(f"graft.{index} ") for index in (2, 0, 1))
    assert broken < dear < cheap
    assert re.search(r"graft\.0 +kept +0.9 +0.004 +-0.25 +\+0.50", shown)
    assert re.search(r"graft\.1 +replaced +0.23 +0.001 +\+0.12 +\+0.00", shown)
    assert re.search(r"graft\.2 +kept +broken +- +- +-", shown)
    assert "sites ranked by recall on 2 calibration windows; graft, in 95.5 s; 1 were measured before" in shown


def test_a_long_list_ends_and_says_so() -> None:
    document = report("graft")
    found = document["passes"][-1]["ranking"]
    found["sites"] = [{**found["sites"][1], "site": f"site{index}."} for index in range(LISTED_SITES + 3)]
    assert "; 3 cheaper sites not listed" in terminal(document)


def test_the_page_draws_a_column_a_site() -> None:
    page = html_page(report("graft"))
    assert "Layers: graft" in page
    assert "nats lost by each probe and 100 times the error (KL), on 2 calibration windows; graft" in page
    drawn = str(ranking_chart(ranking("graft")["sites"]))
    heights = [float(found) for found in re.findall(r'height="([\d.]+)"><title>graft.0: 0.9, ', drawn)]
    assert sum(heights) == COLUMN
    assert drawn.count("graft.1: replaced") == 1
    assert "graft.2: broken" in drawn
    assert "nan" not in drawn
    assert str(ranking_chart([])).startswith("<svg")


def test_scores_add_what_was_lost_and_a_hundred_times_the_error() -> None:
    cost = SiteCost("node", "site", 0.02, {"copying": 1.5, "needle": -0.5})
    assert cost.score("recall") == 1.5 + 100 * 0.02
    assert cost.score("kl") == 100 * 0.02
    assert cost.parts("recall") == {"copying": 1.5, "needle": 0.0, "error": 2.0}


def test_what_is_broken_comes_last_and_equals_keep_their_order() -> None:
    costs = (
        SiteCost("a", "a", math.nan),
        SiteCost("b", "b", 0.1, {"needle": math.nan}),
        SiteCost("c", "c", 0.2),
        SiteCost("d", "d", -1e-9),
        SiteCost("e", "e", 0.0),
    )
    found = SiteRanking("recall", costs, 2)
    assert [cost.node for cost in found.ordered()] == ["d", "e", "c", "a", "b"]
    assert found.chosen() == {"d", "e"}
    told = found.to_json()
    assert [site["replaced"] for site in told["sites"]] == [False, False, False, True, True]
    assert json.loads(json.dumps(told))["sites"][2]["score"] == 20.0


def test_a_share_is_the_nearest_number_and_never_nothing() -> None:
    assert [share_count(0.75, count) for count in (30, 4, 3, 1)] == [22, 3, 2, 1]
    assert [share_count(share, 30) for share in (0.5, 0.9, 1.0, 0.01)] == [15, 27, 30, 1]
