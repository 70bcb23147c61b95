"""The report in a terminal: a line for each pass, then what came out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compiler.cli.terminal import line, table
from compiler.report import formats
from compiler.report.mix_text import choice_rows, limit_lines

if TYPE_CHECKING:
    from rich.console import RenderableType


LISTED_SITES = 40
"""Rows of a ranking; the report has all."""

Figures = tuple[tuple[str, Callable[[dict[str, Any]], str]], ...]
"""Headings of columns, and how each is written from a fidelity."""

COSINES: Figures = (
    ("mean cosine", lambda fidelity: formats.cosine(fidelity["mean_cosine"])),
    ("worst", lambda fidelity: formats.cosine(fidelity["worst_cosine"])),
)
TOP1: Figures = (("top-1", lambda fidelity: formats.share(fidelity["top1_agreement"])),)
NEIGHBOUR: Figures = (("neighbour", lambda fidelity: formats.share(fidelity["neighbour_agreement"])),)
PERPLEXITY: Figures = (
    ("perplexity", lambda fidelity: formats.perplexity(fidelity["perplexity"])),
    ("ratio", lambda fidelity: formats.ratio(fidelity["perplexity_ratio"])),
    ("KL, nats", lambda fidelity: formats.nats(fidelity["kl_divergence"])),
)
CHOOSING_FIGURES: Figures = COSINES + TOP1
EMBEDDING_FIGURES: Figures = COSINES + NEIGHBOUR
LANGUAGE_FIGURES: Figures = PERPLEXITY + TOP1


def compile_summary(document: dict[str, Any]) -> list[RenderableType]:
    """Tables and lines for standard error. `document` is a report with `artifact`, the folder, added."""
    figures = _figures(document)
    rows = [_captured_row(document, figures), *(_pass_row(one, figures) for one in document["passes"])]
    if document["payload"] is not None:
        rows.append(_payload_row(document, figures))
    names = tuple(f">{name}" for name, _ in figures)
    headers = ("after", "what was done", *names, ">weights", ">FLOPs", ">seconds")
    shown: list[RenderableType] = [table(headers, rows)]
    for one in document["passes"]:
        if one["ranking"] is not None:
            shown += _ranking_tables(one)
        if one["mix"] is not None:
            shown += _mix_tables(one)
    shown += [line(f"{one['name']}: {note}") for one in document["passes"] for note in one["notes"]]
    shown += [line(text) for text in _closing(document)]
    return shown


def _mix_tables(one: dict[str, Any]) -> list[RenderableType]:
    """What a budget chose, by choice, and what that was expected to give beside what it gives."""
    headers = (f"{one['name']}, chosen", ">sites", ">bytes before", ">bytes now", ">expected cost")
    return [table(headers, choice_rows(one["mix"])), *map(line, limit_lines(one))]


def _ranking_tables(one: dict[str, Any]) -> list[RenderableType]:
    """What sites cost alone, the dearest first: where replaced and kept ones meet is what matters."""
    ranking = one["ranking"]
    sites = sorted(ranking["sites"], key=lambda site: -1e308 if site["score"] is None else -site["score"])
    probes = sorted({name for site in sites for name in site["recall"]})
    headers = (
        f"{one['name']}, sites",
        "",
        ">cost alone",
        f">{ranking['error']}",
        *(f">{name}, nats" for name in probes),
    )
    rows = [
        (
            site["site"],
            "replaced" if site["replaced"] else "kept",
            "broken" if site["score"] is None else formats.drop(site["score"]),
            formats.nats(site["error"]),
            *(formats.signed(site["recall"].get(name)) for name in probes),
        )
        for site in sites[:LISTED_SITES]
    ]
    seconds = formats.duration(ranking["seconds"])
    told = f"{one['name']}: sites ranked by {ranking['rank']} on {ranking['data']}, in {seconds}"
    reused = f"; {ranking['reused']} were measured before" if ranking["reused"] else ""
    left = len(sites) - LISTED_SITES
    more = f"; {formats.counted(left, 'cheaper site')} not listed" if left > 0 else ""
    return [table(headers, rows), line(told + reused + more)]


def _figures(document: dict[str, Any]) -> Figures:
    """Which figures of a fidelity are shown: those that mean most for the role."""
    fidelity = document["before"]["fidelity"] or {}
    if fidelity.get("perplexity") is not None:
        return LANGUAGE_FIGURES
    return CHOOSING_FIGURES if fidelity.get("top1_agreement") is not None else EMBEDDING_FIGURES


def _captured_row(document: dict[str, Any], figures: Figures) -> tuple[str, ...]:
    before = document["before"]
    perplexity = formats.perplexity(before["fidelity"]["perplexity"]) if figures is LANGUAGE_FIGURES else ""
    size, operations = formats.megabytes(before["weight_bytes"]), formats.operations(before["flops"])
    return ("captured", "", perplexity, *[""] * (len(figures) - 1), size, operations, "")


def _pass_row(one: dict[str, Any], figures: Figures) -> tuple[str, ...]:
    evidence = one["evidence"]
    return (
        one["name"],
        formats.states(one),
        *_fidelity_cells(evidence["fidelity"], figures),
        formats.megabytes(evidence["weight_bytes"]),
        formats.operations(evidence["flops"]),
        f"{evidence['seconds']:.1f}",
    )


def _payload_row(document: dict[str, Any], figures: Figures) -> tuple[str, ...]:
    size = formats.megabytes(document["after"]["payload_bytes"])
    return ("lowered", document["backend"], *_fidelity_cells(document["payload"], figures), size, "", "")


def _fidelity_cells(fidelity: dict[str, Any] | None, figures: Figures) -> tuple[str, ...]:
    return tuple("" if fidelity is None else written(fidelity) for _, written in figures)


def _closing(document: dict[str, Any]) -> list[str]:
    data, folder = document["data"], document["artifact"]
    samples = formats.counted(data["sample_count"], data["unit"])
    told = " (give your own with --data)" if data["shipped"] else ""
    lines = [f"measured on {samples} of {data['name']}{told}"]
    if document["after"]["probes"]:
        now, before = (formats.scores(document[side]["probes"]) for side in ("after", "before"))
        lines.append(f"probes: {now}" + ("" if now == before else f" (captured: {before})"))
    if document["latency"] is not None:
        sides = document["latency"]["sides"]
        lines.append("; ".join(f"{side['name']} {formats.milliseconds(side['median'])}" for side in sides))
    peak = formats.megabytes(document["peak_memory_bytes"])
    lines += [f"note: {note}" for note in document["notes"]]
    lines.append(f"wrote {folder} in {formats.duration(document['seconds'])}, peak memory {peak}")
    lines.append(f"Hint: the whole story is in {folder}/report.html; check it anywhere with: compile verify {folder}")
    return lines
