"""Tables of the decoding benchmark, in the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = "decode_speed.json"
RATES = {"prefill": "prefill_tokens_per_second", "decode": "decode_tokens_per_second"}


def write_decode_results(record: dict[str, Any], folder: Path, console: Console) -> None:
    """Show `record` and write decode_speed.json and decode_speed.md into `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    machine = record["machine"]
    lines = [
        "# Decoding SmolLM2-135M",
        "",
        f"{machine['processor']}; {machine['threads']} threads used, which together read "
        f"{machine['read_gb_per_second']:.1f} GB/s of memory. Median (quartiles) of alternating rounds, tokens a "
        "second; in brackets, the first side's speed over this side's, round by round. Resident memory is that of the "
        "whole process, of which files are programs, libraries and mapped weights; the share of bandwidth counts "
        "weights and cache, read once a token.",
    ]
    for context, sides in record["contexts"].items():
        headings = ["side", "prefill", "decode", "resident MB (files)", "weights + cache MB", "ratio", "bandwidth"]
        rows = list(_rows(record, sides))
        table = Table(*headings, title=f"{context} tokens of context")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        lines += ["", f"## {context} tokens of context", ""]
        lines += ["| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)]
    (folder / "decode_speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(record: dict[str, Any], sides: dict[str, Any]) -> Iterator[list[str]]:
    first = next(iter(sides.values()))
    for name, side in sides.items():
        about = record["sides"][name]
        needed = about["weights_mb"] + side["cache_mb"]
        rate = statistics.median(side[RATES["decode"]])
        share = rate * needed / 1000 / record["machine"]["read_gb_per_second"]
        yield [
            f"{name} ({about['version']}, cache {about['cache_type']})",
            *(_speed(side[key], first[key]) for key in RATES.values()),
            f"{side['resident_mb']:.0f} ({side['resident_files_mb']:.0f})",
            f"{about['weights_mb']:.0f} + {side['cache_mb']:.0f}",
            f"{side['resident_mb'] / needed:.2f}",
            f"{share:.0%}",
        ]


def _speed(rates: list[float], first: list[float]) -> str:
    middle = statistics.median(rates)
    lower, median, upper = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else [middle] * 3
    ratio = statistics.median(one / other for one, other in zip(first, rates, strict=True))
    return f"{median:.1f} ({lower:.1f} to {upper:.1f}) [{ratio:.2f}x]"
