"""report.html: self-contained, escaped, small, and it works in a real browser, wide and narrow, light and dark."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_documents import HOSTILE, report

from compiler.report.html_page import LISTED_SITES, html_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--virtual-time-budget=2000",
)  # fmt: skip

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")


class Tags(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text.append(data)


def test_the_page_needs_nothing_from_outside() -> None:
    page = html_page(report())
    tags = Tags(page).tags
    assert not any(name in attributes for _, attributes in tags for name in ("src", "href", "srcset"))
    assert not any(tag in ("link", "img", "iframe", "object", "base", "form") for tag, _ in tags)
    assert "url(" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags


def test_hostile_names_stay_text() -> None:
    page = html_page(report(HOSTILE))
    parsed = Tags(page)
    assert [tag for tag, _ in parsed.tags if tag in ("script", "img")] == ["script"]
    assert all(not name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert HOSTILE in "".join(parsed.text)
    assert "49" not in [text.strip() for text in parsed.text]


def test_the_page_stays_small_and_lists_what_matters_first() -> None:
    assert len(html_page(report(site_count=100)).encode()) < 60_000
    page = html_page(report(site_count=2000))
    rows = re.findall(r'<tr data-state="(\w+)"', page)
    assert len(rows) == LISTED_SITES
    assert set(rows) == {"returned"}
    assert "report.json has them all" in page


def test_parts_without_numbers_are_left_out() -> None:
    empty = report() | {"latency": None, "payload": None, "passes": [], "sites": [], "kernels": {}, "notes": []}
    empty["after"]["fidelity"] = None
    page = html_page(empty)
    assert "Latency" not in page
    assert 'id="sites"' not in page
    assert "Mean cosine" in page  # the header of the table of passes


@needs_chromium
@pytest.mark.slow
class TestInChromium:
    def test_the_filter_hides_rows(self, tmp_path: Path) -> None:
        act = (
            "const [words, state] = ['words', 'state'].map(id => document.getElementById(id));"
            "state.value = 'returned'; state.dispatchEvent(new Event('change'));"
            "words.value = 'layer.2'; words.dispatchEvent(new Event('input'));"
        )
        dom = in_chromium(with_script(html_page(report(site_count=40)), act), tmp_path)
        rows = re.findall(r'<tr data-state="(\w+)"( hidden="")?>', dom)
        assert len(rows) == 40
        assert [state for state, hidden in rows if not hidden] == ["returned"] * 3  # layers 2, 22 and 26
        assert "3 of 40 sites match." in dom

    def test_hostile_names_run_nothing(self, tmp_path: Path) -> None:
        dom = in_chromium(html_page(report(HOSTILE)), tmp_path)
        assert "<title>owned" not in dom
        assert "onerror=&quot;" in dom or "&lt;img src=x" in dom

    def test_a_phone_needs_no_sideways_scrolling(self, tmp_path: Path) -> None:
        frame = f'<iframe id="page" width="360" height="800" srcdoc="{escape(html_page(report("encoder")))}"></iframe>'
        measure = "page.onload = () => document.title = page.contentDocument.documentElement.scrollWidth;"
        dom = in_chromium(f"<!doctype html><title>0</title>{frame}<script>{measure}</script>", tmp_path)
        title = re.search(r"<title>(\d+)</title>", dom)
        assert title is not None
        assert 300 < int(title[1]) <= 360

    def test_it_follows_the_readers_colours(self, tmp_path: Path) -> None:
        act = "document.title = getComputedStyle(document.body).backgroundColor;"
        page = with_script(html_page(report()), act)
        light, dark = (
            in_chromium(page, tmp_path, f"--blink-settings=preferredColorScheme={scheme}") for scheme in (1, 0)
        )
        assert "<title>rgb(251, 250, 247)</title>" in light
        assert "<title>rgb(20, 23, 26)</title>" in dark


def with_script(page: str, code: str) -> str:
    """The page with a script of the test's at its end."""
    return page.replace("</body>", f"<script>{code}</script></body>")


def in_chromium(page: str, folder: Path, *switches: str) -> str:
    """The document after its scripts ran."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, *SWITCHES, *switches, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
