"""The report in a terminal: a line for each pass, then what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.cli.terminal import line, table
from compiler.report import formats

if TYPE_CHECKING:
    from rich.console import RenderableType


def compile_summary(document: dict[str, Any]) -> list[RenderableType]:
    """Tables and lines for standard error. `document` is a report with `artifact`, the folder, added."""
    agreement = _agreement_name(document)
    rows = [_captured_row(document), *(_pass_row(one, agreement) for one in document["passes"])]
    if document["payload"] is not None:
        rows.append(_payload_row(document, agreement))
    headers = ("after", "what was done", ">mean cosine", ">worst", f">{agreement[1]}", ">weights", ">FLOPs", ">seconds")
    shown: list[RenderableType] = [table(headers, rows)]
    shown += [line(f"{one['name']}: {note}") for one in document["passes"] for note in one["notes"]]
    shown += [line(text) for text in _closing(document)]
    return shown


def _agreement_name(document: dict[str, Any]) -> tuple[str, str]:
    fidelity = document["after"]["fidelity"] or {}
    choosing = fidelity.get("top1_agreement") is not None
    return ("top1_agreement", "top-1") if choosing else ("neighbour_agreement", "neighbour")


def _captured_row(document: dict[str, Any]) -> tuple[str, ...]:
    before = document["before"]
    return (
        "captured",
        "",
        "",
        "",
        "",
        formats.megabytes(before["weight_bytes"]),
        formats.operations(before["flops"]),
        "",
    )


def _pass_row(one: dict[str, Any], agreement: tuple[str, str]) -> tuple[str, ...]:
    evidence = one["evidence"]
    return (
        one["name"],
        formats.states(one),
        *_fidelity_cells(evidence["fidelity"], agreement),
        formats.megabytes(evidence["weight_bytes"]),
        formats.operations(evidence["flops"]),
        f"{evidence['seconds']:.1f}",
    )


def _payload_row(document: dict[str, Any], agreement: tuple[str, str]) -> tuple[str, ...]:
    size = formats.megabytes(document["after"]["payload_bytes"])
    return ("lowered", document["backend"], *_fidelity_cells(document["payload"], agreement), size, "", "")


def _fidelity_cells(fidelity: dict[str, Any] | None, agreement: tuple[str, str]) -> tuple[str, str, str]:
    if fidelity is None:
        return "", "", ""
    kept = fidelity[agreement[0]]
    return formats.cosine(fidelity["mean_cosine"]), formats.cosine(fidelity["worst_cosine"]), formats.share(kept)


def _closing(document: dict[str, Any]) -> list[str]:
    data, folder = document["data"], document["artifact"]
    samples = formats.counted(data["sample_count"], "sample")
    told = " (give your own with --data)" if data["shipped"] else ""
    lines = [f"measured on {samples} of {data['name']}{told}"]
    if document["latency"] is not None:
        sides = document["latency"]["sides"]
        lines.append("; ".join(f"{side['name']} {formats.milliseconds(side['median'])}" for side in sides))
    peak = formats.megabytes(document["peak_memory_bytes"])
    lines += [f"note: {note}" for note in document["notes"]]
    lines.append(f"wrote {folder} in {formats.duration(document['seconds'])}, peak memory {peak}")
    lines.append(f"Hint: the whole story is in {folder}/report.html; check it anywhere with: compile verify {folder}")
    return lines
