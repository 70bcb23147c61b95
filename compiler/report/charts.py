"""Charts as inline SVG. Every text goes through Markup.format, which escapes it; the style sheet has the colours.

A chart is 360 units wide, so that its text stays readable on a phone; labels stand above their bars and never beside
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from compiler.report import formats

WIDTH = 360
ROW = 34
BAR = 12
LABEL_LIMIT = 46
TOP, COLUMN = 16, 110
ERROR = "error"
MOST_DECADES = 6
"""Of costs: what is less is nothing beside the rest."""
COLOURS = {"linear": "a", "embedding": "b", "convolution": "c", "norm": "d", "other": "e"}


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    name: str
    median: float
    lower: float
    upper: float


def size_chart(before: Mapping[str, int], after: Mapping[str, int]) -> Markup:
    """Two stacked bars: bytes by kind, before and after."""
    largest = max(sum(before.values()), sum(after.values()), 1)
    rows, kinds = [], [kind for kind in COLOURS if before.get(kind) or after.get(kind)]
    for index, (name, sizes) in enumerate((("before", before), ("after", after))):
        top = index * ROW
        rows.append(_label(top, name, formats.megabytes(sum(sizes.values()))))
        left = 0.0
        for kind in kinds:
            width = WIDTH * sizes.get(kind, 0) / largest
            title = f"{kind}: {formats.megabytes(sizes.get(kind, 0))}"
            rows.append(_bar(left, top, width, COLOURS[kind], title))
            left += width
    for index, kind in enumerate(kinds):
        rows.append(_legend(index, 2 * ROW + 4, kind, COLOURS[kind]))
    return _svg("Bytes of weights by kind, before and after", 2 * ROW + 4 + 16 * math.ceil(len(kinds) / 3), rows)


def latency_chart(sides: Sequence[Spread]) -> Markup:
    """A bar a side, with a whisker from the lower to the upper quartile. In seconds."""
    largest = max([side.upper for side in sides] + [1e-9])
    rows = []
    for index, side in enumerate(sides):
        top = index * ROW
        rows.append(_label(top, side.name, formats.milliseconds(side.median)))
        title = f"{formats.milliseconds(side.lower)} to {formats.milliseconds(side.upper)}"
        rows.append(_bar(0, top, WIDTH * side.median / largest, "a" if index == 0 else "e", title))
        low, high, middle = WIDTH * side.lower / largest, WIDTH * side.upper / largest, top + 17 + BAR / 2
        rows.append(
            Markup(
                '<path class="whisker" d="M{:.1f} {:.1f}V{:.1f}M{:.1f} {:.1f}H{:.1f}M{:.1f} {:.1f}V{:.1f}"/>'
            ).format(low, middle - 4, middle + 4, low, middle, high, high, middle - 4, middle + 4)
        )
    return _svg("Latency, median with quartiles", len(sides) * ROW, rows)


def fidelity_chart(steps: Sequence[tuple[str, float, float]]) -> Markup:
    """For every step (name, mean cosine, worst cosine) two dots on one scale that ends at 1: nothing has changed."""
    lowest = min([worst for _, _, worst in steps] + [0.999])
    least = max(-1.0, 1 - (1 - lowest) * 1.1)

    def x(value: float) -> float:
        return 6 + (WIDTH - 12) * (value - least) / (1 - least)

    rows = []
    for index, (name, mean, worst) in enumerate(steps):
        top = index * ROW
        middle = top + 17 + BAR / 2
        rows.append(_label(top, name, formats.cosine(mean)))
        rows.append(Markup('<path class="axis" d="M6 {:.1f}H{}"/>').format(middle, WIDTH - 6))
        rows.append(Markup('<path class="range" d="M{:.1f} {:.1f}H{:.1f}"/>').format(x(worst), middle, x(mean)))
        for value, kind, word in ((worst, "d", "worst"), (mean, "a", "mean")):
            title = f"{word} cosine {formats.cosine(value)}"
            rows.append(_dot(x(value), middle, kind, title))
    bottom = len(steps) * ROW + 10
    rows.append(Markup('<text class="tick" x="6" y="{}">{}</text>').format(bottom, formats.cosine(least)))
    end = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">1 = unchanged</text>')
    rows.append(end.format(WIDTH - 6, bottom))
    return _svg("Cosine to the captured model after each pass: mean and worst row", bottom + 4, rows)


def probe_chart(probes: Sequence[tuple[str, float, float]]) -> Markup:
    """Two bars a probe (name, score before, score after) on a scale that ends at 1, or at the largest score."""
    largest = max([1.0] + [max(before, after) for _, before, after in probes])
    rows = []
    for index, (name, before, after) in enumerate(probes):
        top = index * (ROW + BAR)
        rows.append(_label(top, name, f"{after:.3f}"))
        rows.append(_bar(0, top, WIDTH * max(before, 0.0) / largest, "e", f"before: {before:.3f}"))
        rows.append(_bar(0, top + BAR, WIDTH * max(after, 0.0) / largest, "a", f"after: {after:.3f}"))
    return _svg("Scores of probes, before and after", len(probes) * (ROW + BAR), rows)


def drop_chart(drops: Sequence[tuple[str, str, float]]) -> Markup:
    """A bar a site (name, state, drop when it alone is grafted), the worst first."""
    largest = max([value for _, _, value in drops] + [1e-12])
    rows = []
    for index, (name, state, value) in enumerate(drops):
        top = index * ROW
        rows.append(_label(top, name, formats.drop(value)))
        rows.append(_bar(0, top, WIDTH * max(value, 0.0) / largest, "d" if state == "returned" else "a", state))
    return _svg("What single sites cost", len(drops) * ROW, rows)


def ranking_chart(sites: Sequence[Mapping[str, Any]]) -> Markup:
    """A column a site in graph order: what its score is the sum of, and a mark below it where it is replaced.

    Each has `site`, `replaced`, `score` and `parts` by name; a number is None where outputs were broken.
    """
    names = [*sorted({name for site in sites for name in site["parts"]} - {ERROR}), ERROR]
    colours = {name: "e" if name == ERROR else "dabc"[index % 4] for index, name in enumerate(names)}
    largest = max([site["score"] for site in sites if site["score"] is not None] + [1e-12])
    step = WIDTH / max(len(sites), 1)
    column = Markup('<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>')
    rows = [Markup('<text class="tick" x="0" y="10">{}</text>').format(f"{largest:.3g}")]
    for index, site in enumerate(sites):
        broken = site["score"] is None
        parts = {ERROR: largest} if broken else {name: site["parts"].get(name) or 0.0 for name in names}
        title = f"{site['site']}: {'broken' if broken else formats.drop(site['score'])}"
        left, width, top = index * step, max(0.5, step - min(2.0, step / 4)), TOP + COLUMN
        for name, value in parts.items():
            height = COLUMN * value / largest
            top -= height
            told = title if broken else f"{title}, {name} {formats.drop(value)}"
            rows.append(column.format(colours[name], left, top, width, height, told))
        if site["replaced"]:
            rows.append(column.format("ink", left, TOP + COLUMN + 3, width, 5, f"{site['site']}: replaced"))
    bottom = TOP + COLUMN + 16
    for index, name in enumerate(names):
        rows.append(_legend(index, bottom, f"10 x {name}" if name == ERROR else name, colours[name]))
    return _svg("What each site costs alone, and which are replaced", bottom + 16 * math.ceil(len(names) / 3), rows)


def curve_chart(points: Sequence[tuple[float, float]], marks: Sequence[tuple[float, str]] = ()) -> Markup:
    """A line through (seconds, loss) on a scale from 0, with its first and least values, and dashed marks in time."""
    last = max([seconds for seconds, _ in points] + [1e-9])
    largest = max([loss for _, loss in points] + [1e-12])
    left, top, width, height = 6, 20, WIDTH - 12, 120
    places = [(left + width * seconds / last, top + height * (1 - loss / largest)) for seconds, loss in points]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    rows = [Markup('<path class="axis" d="M{} {}H{}"/>').format(left, top + height, left + width)]
    rows.append(Markup('<path class="curve" d="M{}"/>').format(line))
    for (seconds, loss), (x, y) in zip(points, places, strict=True):
        rows.append(_dot(x, y, "a", f"{seconds:.0f} s: {loss:.4g}"))
    for seconds, text in marks:
        x = left + width * seconds / last
        dashed = Markup('<path class="whisker" stroke-dasharray="3 3" d="M{:.1f} {}V{}"/>')
        rows.append(dashed.format(x, top, top + height))
        rows.append(Markup('<text class="tick" x="{:.1f}" y="{}">{}</text>').format(x + 4, top + 10, text))
    ends = f"{points[0][1]:.4g} to {min(loss for _, loss in points):.4g}"
    rows.append(Markup('<text class="value" x="{}" y="12">{}</text>').format(WIDTH, ends))
    rows.append(Markup('<text class="tick" x="{}" y="{}">0 s</text>').format(left, top + height + 14))
    end = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    rows.append(end.format(left + width, top + height + 14, formats.duration(last)))
    return _svg("Held-out loss while healing", top + height + 20, rows)


def frontier_chart(
    points: Sequence[tuple[float, float]], chosen: tuple[float, float], written: Callable[[float], str]
) -> Markup:
    """A line through (amount, cost), amounts from 0 and costs by powers of ten, and a dot for what was chosen.

    `written` puts an amount in words. Costs of nothing stand at the bottom.
    """
    costs = [cost for _, cost in (*points, chosen) if cost > 0] or [1.0]
    high, low = math.log10(max(costs)), math.log10(min(costs))
    low = max(min(low, high - 1), high - MOST_DECADES)
    largest = max([amount for amount, _ in (*points, chosen)] + [1e-12])
    left, top, width, height = 6, 20, WIDTH - 12, 120

    def place(amount: float, cost: float) -> tuple[float, float]:
        decades = max(low, math.log10(cost)) if cost > 0 else low
        return left + width * amount / largest, top + height * (high - decades) / (high - low)

    places = [place(*point) for point in points]
    rows = [Markup('<path class="axis" d="M{} {}H{}"/>').format(left, top + height, left + width)]
    if places:
        rows.append(Markup('<path class="curve" d="M{}"/>').format("L".join(f"{x:.1f} {y:.1f}" for x, y in places)))
    for (amount, cost), (x, y) in zip(points, places, strict=True):
        rows.append(_dot(x, y, "a", f"{written(amount)}: {cost:.3g}"))
    rows.append(_dot(*place(*chosen), "d", f"chosen, {written(chosen[0])}: {chosen[1]:.3g}"))
    rows.append(Markup('<text class="tick" x="{}" y="12">{}</text>').format(left, f"{max(costs):.3g}"))
    told = f"{written(chosen[0])}: {chosen[1]:.3g}"
    rows.append(Markup('<text class="value" x="{}" y="12">{}</text>').format(WIDTH, told))
    rows.append(Markup('<text class="tick" x="{}" y="{}">0</text>').format(left, top + height + 14))
    end = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    rows.append(end.format(left + width, top + height + 14, written(largest)))
    return _svg("The least cost by what the model may use, and what was chosen", top + height + 20, rows)


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    frame = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>')
    return frame.format(WIDTH, height, title, Markup("").join(parts))


def _label(top: float, text: str, value: str) -> Markup:
    short = text if len(text) <= LABEL_LIMIT else f"{text[: LABEL_LIMIT // 3]}…{text[-LABEL_LIMIT * 2 // 3 + 1 :]}"
    pair = Markup('<text x="0" y="{:.0f}">{}<title>{}</title></text><text class="value" x="{}" y="{:.0f}">{}</text>')
    return pair.format(top + 12, short, text, WIDTH, top + 12, value)


def _bar(left: float, top: float, width: float, colour: str, title: str) -> Markup:
    shape = Markup('<rect class="{}" x="{:.1f}" y="{:.0f}" width="{:.1f}" height="{}"><title>{}</title></rect>')
    return shape.format(colour, left, top + 17, max(width, 0.0), BAR, title)


def _dot(x: float, y: float, colour: str, title: str) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"><title>{}</title></circle>').format(
        colour, x, y, title
    )


def _legend(index: int, top: float, text: str, colour: str) -> Markup:
    left, y = (index % 3) * 120, top + 16 * (index // 3)
    pair = Markup('<rect class="{}" x="{}" y="{}" width="10" height="10"/><text class="tick" x="{}" y="{}">{}</text>')
    return pair.format(colour, left, y, left + 15, y + 9, text)
