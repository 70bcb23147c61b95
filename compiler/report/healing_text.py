"""What healing did, in a sentence: time, what was trained on, and what it gained on data that it was not trained on."""

from __future__ import annotations

from typing import Any

from compiler.report import formats


def healing_text(healing: dict[str, Any]) -> str:
    """Of a healing as report.json has it."""
    ends = [key.replace("_", " ") for key in ("interrupted", "stopped_early") if healing[key]]
    told = f" ({', '.join(ends)})" if ends else ""
    kept = sum(site["kept"] for site in healing["sites"])
    alone = f"; trained alone, {kept} of {formats.counted(len(healing['sites']), 'site')} got better"
    losses = " to ".join(f"{loss:.4g}" for loss in (healing["start"], healing["end"]))
    return (
        f"healed for {formats.duration(healing['seconds'])}{told} on {learned_from(healing)}"
        f"{alone if healing['sites'] else ''}; held-out {healing['unit']}: {losses}"
    )


def learned_from(healing: dict[str, Any]) -> str:
    """`1,024 tokens`, or samples where the model is none of language."""
    return f"{healing['tokens']:,} {'tokens' if 'token' in healing['unit'] else 'samples'}"
