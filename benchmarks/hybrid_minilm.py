"""all-MiniLM-L6-v2 with half its attention layers grafted, healed and not: cosine to the original on held-out text.

    python benchmarks/hybrid_minilm.py [--heal 5] [--window 8] [--kind gated-delta] [--data FOLDER]

Sides: a bidirectional window alone; the hybrid of that window and a mixer in both directions, unhealed; the hybrid
healed for --heal minutes. The layers are those that `layers=auto-0.5` finds cheapest. Each is compiled by the command
into an artifact that runs in ONNX Runtime; the reference is the checkpoint in torch. Held-out text is Python's own
help: 64 sentences, and 32 passages of about 200 tokens, most of which no window sees. Healing trains on the prose that
ships with the compiler, or on --data. Writes results/hybrid_minilm.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from contender_worker import open_artifact, open_torch
from measurement import fidelity
from minilm_int8 import packaged_checkpoint, processor
from texts import encode, held_out_passages, held_out_texts

RESULTS = Path(__file__).resolve().parent / "results"
TARGET = 0.97
SINKS = 4


def main() -> None:
    """Compile, measure, write."""
    arguments = _arguments()
    checkpoint = arguments.checkpoint or packaged_checkpoint()
    texts = {"sentences": held_out_texts(), "passages": held_out_passages()}
    inputs = {name: encode(checkpoint, some) for name, some in texts.items()}
    reference = open_torch(checkpoint, arguments.threads)[0]
    expected = {name: _rows(reference, some) for name, some in inputs.items()}
    ends = f"window={arguments.window}:sinks={SINKS}:layers={arguments.layers}"
    hybrid = f"linear-attention:kind={arguments.kind}:{ends}"
    sides = {
        "window, untrained": (f"sliding-window:{ends}", None),
        f"window and {arguments.kind}, untrained": (hybrid, None),
        f"window and {arguments.kind}, healed": (hybrid, arguments.heal),
    }
    record: dict[str, Any] = {
        "machine": {"processor": processor(), "threads": arguments.threads, "python": platform.python_version()},
        "window": arguments.window,
        "layers": arguments.layers,
        "heal_minutes": arguments.heal,
        "tokens": {name: float(np.mean([one["input_ids"].size for one in some])) for name, some in inputs.items()},
        "target": TARGET,
        "sides": {},
    }
    with tempfile.TemporaryDirectory(prefix="hybrid-minilm-") as scratch:
        for number, (name, (passes, minutes)) in enumerate(sides.items()):
            artifact = Path(scratch) / str(number)
            seconds = _compile(checkpoint, passes, minutes, arguments, artifact)
            run, _ = open_artifact(artifact, arguments.threads)
            found = {kind: fidelity(expected[kind], _rows(run, some)) for kind, some in inputs.items()}
            record["sides"][name] = {"passes": passes, "compile_seconds": seconds, **found, **_told(artifact)}
            print(name, json.dumps(record["sides"][name]), file=sys.stderr, flush=True)
    healed = list(record["sides"].values())[-1]
    record["holds"] = bool(healed["sentences"]["mean_cosine"] >= TARGET)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "hybrid_minilm.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page = markdown(record)
    (RESULTS / "hybrid_minilm.md").write_text(page, encoding="utf-8")
    print(page)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a folder; the packaged all-MiniLM-L6-v2 if left out")
    parser.add_argument("--heal", type=float, default=5.0, help="minutes")
    parser.add_argument("--window", type=int, default=8, help="tokens that attention still sees on either side")
    parser.add_argument("--kind", default="gated-delta", help="the mixer: compile passes linear-attention")
    parser.add_argument("--layers", default="auto-0.5")
    parser.add_argument("--data", type=Path, help="text to choose layers by and to train on; shipped text if left out")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _compile(
    checkpoint: Path, passes: str, minutes: float | None, arguments: argparse.Namespace, artifact: Path
) -> float:
    """Compile by the command, with healing from its start; the seconds that it took."""
    command = [sys.executable, "-m", "compiler.cli", str(checkpoint), "--passes", passes, "-o", str(artifact)]
    if minutes is not None:
        command += ["--heal", f"{minutes:g}", "--heal-folder", str(artifact.with_suffix(".heal"))]
    if arguments.data is not None:
        command += ["--data", str(arguments.data)]
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def _rows(run: Any, inputs: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """An embedding for every text, float64."""
    return np.concatenate([np.asarray(run(one)) for one in inputs]).astype(np.float64)


def _told(artifact: Path) -> dict[str, Any]:
    """Of an artifact's report: the sites that were grafted, and what healing did."""
    report = json.loads((artifact / "report.json").read_text(encoding="utf-8"))
    last = report["passes"][-1]
    kept = ("seconds", "steps", "tokens", "parameters", "unit", "start", "after_sites", "end", "stopped_early", "notes")
    healing = last["healing"] and {name: last["healing"][name] for name in kept}
    grafted = [one["site"] for one in report["sites"] if one["pass"] == last["name"] and one["state"] == "grafted"]
    return {"grafted": grafted, "healing": healing}


def markdown(record: dict[str, Any]) -> str:
    """The page."""
    machine, tokens = record["machine"], record["tokens"]
    lines = [
        "# all-MiniLM-L6-v2 with half its attention layers grafted",
        "",
        f"{machine['processor']}; {machine['threads']} threads used. A window of {record['window']} tokens on either "
        f"side and {SINKS} sinks; `layers={record['layers']}`; {record['heal_minutes']:g} minutes of healing. Cosine "
        f"to the original in torch, on held-out text: 64 sentences of {tokens['sentences']:.0f} tokens and 32 passages "
        f"of {tokens['passages']:.0f} on average. Wanted, of the healed one on sentences: a mean of at least "
        f"{record['target']:g}.",
        "",
        "| side | sentences: mean cosine | least | neighbour kept | passages: mean cosine | least | compile s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, side in record["sides"].items():
        some, long = side["sentences"], side["passages"]
        lines.append(
            f"| {name} | {some['mean_cosine']:.4f} | {some['least_cosine']:.4f} | {some['nearest_neighbour_kept']:.3f} "
            f"| {long['mean_cosine']:.4f} | {long['least_cosine']:.4f} | {side['compile_seconds']:.0f} |"
        )
    healed = list(record["sides"].values())[-1]
    lines += ["", f"Grafted: {', '.join(healed['grafted'])}."]
    if healing := healed["healing"]:
        lines.append(
            f"Healing: {healing['steps']} steps end to end, {healing['unit']} {healing['start']:.4g} at first, "
            f"{healing['after_sites']:.4g} after its sites alone, {healing['end']:.4g} at the end, on text that was "
            f"not trained on."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
