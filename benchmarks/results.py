"""Tables of a benchmark, in the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def write_results(record: dict[str, Any], folder: Path, console: Console) -> None:
    """Show `record` and write minilm_int8.json and minilm_int8.md into `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "minilm_int8.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    headings, rows = _summary(record)
    table = Table(*headings, title="all-MiniLM-L6-v2")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    text = markdown("all-MiniLM-L6-v2 in int8", record["machine"], headings, rows)
    (folder / "minilm_int8.md").write_text(text, encoding="utf-8")


def earlier_record(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What stands in a file of results, where it was measured as `about` says; or else that alone."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return dict(about)
    return found if all(found.get(key) == value for key, value in about.items()) else dict(about)


def records_by_machine(path: Path, about: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records in a file of results, one a machine, and among them that of the machine that `about` tells of.

    It is empty but for `about` where that differs in anything from what stood there.
    """
    path.parent.mkdir(exist_ok=True)
    records: list[dict[str, Any]] = earlier_record(path, {}).get("machines", [])
    own = next((one for one in records if about.items() <= one.items()), None)
    if own is None:
        own = dict(about)
        others = [one for one in records if one["machine"]["processor"] != about["machine"]["processor"]]
        records = [*others, own]
    return records, own


def write_by_machine(
    file: Path, records: list[dict[str, Any]], title: str, about: str, sections: Callable[[dict[str, Any]], list[str]]
) -> None:
    """Write `records` to `file`, and a page beside it: `about`, and the lines of each record's sections."""
    lines = [f"# {title}", "", about]
    for record in records:
        machine = record["machine"]
        where = f"{machine['processor']}; {machine['threads']} thread; ONNX Runtime {record['onnxruntime']}"
        lines += ["", f"## {where}", *sections(record)]
    file.write_text(json.dumps({"machines": records}, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def markdown(title: str, machine: dict[str, Any], headings: list[str], rows: list[list[str]]) -> str:
    """A page with one table of latencies."""
    lines = [_markdown_row(headings), _markdown_row(["---"] * len(headings)), *map(_markdown_row, rows)]
    where = f"{machine['processor']}; {machine['threads']} threads used"
    return f"# {title}\n\n{where}. Latency: median (quartiles) in ms.\n\n" + "\n".join(lines) + "\n"


def _summary(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    shapes = list(record["latency_ms"])
    headings = [
        "side",
        *shapes,
        f"least, {shapes[0]}",
        "mean cosine",
        "least cosine",
        "neighbour kept",
        "MB",
        "peak MB",
    ]
    rows = []
    for name, side in record["sides"].items():
        timed = [record["latency_ms"][shape][name] for shape in shapes]
        cells = [f"{one['median']:.2f} ({one['lower']:.2f} to {one['upper']:.2f})" for one in timed]
        least = f"{record['latency_ms'][shapes[0]][name]['least']:.2f}"
        fidelity = [f"{side[key]:.4f}" for key in ("mean_cosine", "least_cosine")]
        kept = f"{side['nearest_neighbour_kept']:.3f}"
        sizes = [f"{side['file_mb']:.1f}", f"{side['peak_memory_mb']:.0f}"]
        rows.append([f"{name} ({side['version']})", *cells, least, *fidelity, kept, *sizes])
    return headings, rows


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
