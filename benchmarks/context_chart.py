"""A chart of speed by tokens of context, both on scales of powers of two, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 380, 48, 150, 34, 40
COLOURS = ("#4c6ef5", "#e8590c", "#2b8a3e", "#ae3ec9", "#c92a2a", "#1098ad", "#868e96")


def context_chart(rates: Mapping[str, Mapping[int, float]], title: str) -> str:
    """A line a side: `rates` are tokens a second by side and tokens of context."""
    contexts = sorted({context for side in rates.values() for context in side})
    values = [rate for side in rates.values() for rate in side.values()]
    lowest, highest = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)) + 1e-9)
    first, last = math.log2(contexts[0]), math.log2(contexts[-1])

    def x(context: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log2(context) - first) / ((last - first) or 1)

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log2(rate) - lowest) / ((highest - lowest) or 1)

    parts = [f'<text x="{LEFT}" y="18" font-weight="bold">{escape(title)}</text>']
    for power in range(lowest, highest + 1):
        parts.append(_line(LEFT, y(2.0**power), WIDTH - RIGHT, y(2.0**power)))
        parts.append(f'<text x="{LEFT - 6}" y="{y(2.0**power) + 4:.1f}" text-anchor="end">{2.0**power:g}</text>')
    for context in contexts:
        parts.append(_line(x(context), TOP, x(context), HEIGHT - BOTTOM))
        label = f"{context // 1024}k" if context >= 1024 else str(context)
        parts.append(f'<text x="{x(context):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
    ends = _apart([y(side[max(side)]) for side in rates.values()])
    for index, ((name, side), end) in enumerate(zip(rates.items(), ends, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        points = " ".join(f"{x(context):.1f},{y(rate):.1f}" for context, rate in sorted(side.items()))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for context, rate in side.items():
            dot = f'<circle cx="{x(context):.1f}" cy="{y(rate):.1f}" r="3" fill="{colour}">'
            parts.append(f"{dot}<title>{escape(name)}, {context} tokens: {rate:.1f} a second</title></circle>")
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{end + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    style = 'font-family="sans-serif" font-size="12" fill="#495057"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])


def _line(left: float, top: float, right: float, bottom: float) -> str:
    return f'<path d="M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}" stroke="#dee2e6"/>'


def _apart(heights: list[float], least: float = 14) -> list[float]:
    """Heights moved down until no two labels are closer than `least`, in the same order."""
    moved, below = list(heights), -math.inf
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        moved[index] = below = max(heights[index], below + least)
    return moved
