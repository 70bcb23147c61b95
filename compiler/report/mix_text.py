"""What a budget chose, in words and tables: the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compiler.report import formats

AMOUNTS: Mapping[str, Callable[[float | None], str]] = {
    "size": formats.megabytes,
    "flops": formats.operations,
    "latency": formats.milliseconds,
}
AS_IT_IS = "as it is"


def choice_rows(mix: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """A row a choice: what, at how many sites, bytes before and now, expected cost; the most bytes first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in mix["places"]:
        groups.setdefault(one["choice"] or AS_IT_IS, []).append(one)
    ordered = sorted(groups.items(), key=lambda item: -sum(one["bytes"] for one in item[1]))
    return [
        (
            choice,
            str(len(found)),
            formats.megabytes(sum(one["original_bytes"] for one in found)),
            formats.megabytes(sum(one["bytes"] for one in found)),
            formats.drop(sum(one["cost"] for one in found)),
        )
        for choice, found in ordered
    ]


def limit_lines(one: Mapping[str, Any]) -> list[str]:
    """What was allowed, expected and found, for each limit and for the outputs. `one` is a pass of a report."""
    mix = one["mix"]
    lines = [_limit_line(limit) for limit in mix["limits"]]
    if mix["expected"] is None:
        return [*lines, f"{one['name']}: the mix is the recipe's; nothing was searched for"]
    measured = measured_error(one)
    found = "" if measured is None else f", {measured:.3g} measured on data that no pass has seen"
    lines.append(f"{one['name']}: {mix['expected']:.3g} of {mix['error_name']} expected{found}")
    reused = f", {mix['reused']} of them by an earlier run" if mix["reused"] else ""
    seconds = formats.duration(mix["seconds"])
    return [*lines, f"{one['name']}: {mix['candidate_count']} candidates measured{reused}; {seconds} in all"]


def _limit_line(limit: Mapping[str, Any]) -> str:
    written = AMOUNTS[limit["quantity"]]
    amounts = [f"{written(limit[key])} {word}" for key, word in (("allowed", "allowed"), ("expected", "expected"))]
    return f"{limit['text']}: {', '.join(amounts)}, {written(limit['measured'])} found, of {written(limit['whole'])}"


def measured_error(one: Mapping[str, Any]) -> float | None:
    """What the outputs really lost, in the unit of expected costs: all passes up to this one."""
    fidelity = one["evidence"]["fidelity"]
    if fidelity is None:
        return None
    kl, cosine = fidelity["kl_divergence"], fidelity["mean_cosine"]
    found: float | None = kl if kl is not None else None if cosine is None else 1.0 - cosine
    return found


def frontier_caption(mix: Mapping[str, Any]) -> str:
    """What the chart of a frontier shows."""
    quantity = mix["limits"][0]["quantity"]
    others = " with the other limits held" if len(mix["limits"]) > 1 else ""
    return (
        f"The least cost ({mix['error_name']}, expected) by {quantity}{others}, each point a solved choice. "
        "Orange: what was chosen."
    )
