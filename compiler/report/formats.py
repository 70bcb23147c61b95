"""Numbers as people read them."""

from __future__ import annotations

from typing import Any

LEAST_NATS = 1e-6
STATES = ("grafted", "softened", "returned", "refused")


def megabytes(size: float | None) -> str:
    """`22.7 MB`; small sizes in kB."""
    if size is None:
        return "-"
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def operations(flops: float | None) -> str:
    """`1.36 GFLOP`; small counts in MFLOP."""
    if flops is None:
        return "-"
    return f"{flops / 1e9:,.2f} GFLOP" if flops >= 1e7 else f"{flops / 1e6:,.2f} MFLOP"


def cosine(value: float | None) -> str:
    """Five decimals, never rounded up to 1 when it is less."""
    if value is None:
        return "-"
    return "1" if value == 1.0 else f"{min(value, 0.999999):.5f}" if value < 0.999995 else "0.99999+"


def share(value: float | None) -> str:
    """`93.8 %`, never rounded up to 100."""
    if value is None:
        return "-"
    return "100 %" if value == 1.0 else f"{min(value * 100, 99.9):.1f} %"


def perplexity(value: float | None) -> str:
    """`24.21`; fewer decimals where it is large."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    """`x1.0213`."""
    return "-" if value is None else f"x{value:.4f}"


def nats(value: float | None) -> str:
    """A divergence, to three digits that matter; what storage rounds is nothing."""
    if value is None:
        return "-"
    return "0" if value < LEAST_NATS else f"{value:.3g}"


def signed(value: float | None) -> str:
    """A difference, to two decimals, with its sign."""
    return "-" if value is None else f"{value:+.2f}"


def scores(probes: dict[str, float]) -> str:
    """`copying 0.855, needle 1`."""
    return ", ".join(f"{name} {round(score, 3):g}" for name, score in probes.items())


def milliseconds(seconds: float | None) -> str:
    """Three digits that matter."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def duration(seconds: float) -> str:
    """Seconds, with a decimal where it says something."""
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.1f} s"


def drop(value: float | None) -> str:
    """What a site costs alone, to three digits."""
    return "" if value is None else f"{value:.2g}"


def counted(count: int, noun: str) -> str:
    """`1 site`, `2 sites`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def states(one: dict[str, Any]) -> str:
    """`70 grafted, 2 refused` for a graft; the count of changes for a rewrite."""
    words = [f"{one['states'][state]} {state}" for state in STATES if one["states"].get(state)]
    if one["make"] == "rewrite":
        words.insert(0, counted(one["changed_count"], "change"))
    return ", ".join(words) or "nothing to do"
