"""Feed-forward blocks of structured layers: what is left of a model at 95 to 50 % of their numbers, and its speed.

    python benchmarks/structured_feed_forward.py CHECKPOINT --text FOLDER --artifacts FOLDER
        [--kinds low-rank monarch block-dense pivoted-low-rank prune-neurons budget] [--ratios 0.95 0.9 0.75 0.5]
        [--heal MINUTES] [--options KEY=VALUE:...] [--tokens 8192] [--no-speed] [--no-minilm]

CHECKPOINT is a transformers folder, for instance of SmolLM2-135M-Instruct. Every eighth document of --text is held out;
the others are what is calibrated and healed on. A row is one kind of structure, or neurons that go altogether, or what
--budget chooses among both, at one ratio: it is compiled by the command into --artifacts, where it is not there yet,
and its artifact reads held-out windows of 512 tokens beside transformers in float32. Then it is timed in turns with the
artifact of the dense model: a prompt of 512 tokens, and 32 tokens after it. all-MiniLM-L6-v2 at 75 % is measured by the
cosine of its embeddings of held-out sentences.

Rows are written as they are measured, and rows that stand in benchmarks/results/structured_feed_forward.json are not
measured again but for what they lack: a run that was stopped goes on, and --heal adds rows to those without.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contender_worker import open_artifact, open_torch
from decoding_gain import decoding_gain
from held_out_text import TextFolder, held_out_windows
from measurement import fidelity, weight_counts
from minilm_int8 import packaged_checkpoint, processor
from quality_figures import SideFigures, add_window, artifact_logits, transformers_logits
from rich.console import Console
from texts import encode, held_out_texts

RESULTS = Path(__file__).resolve().parent / "results"
EXACT = "canonicalize,fuse"
DENSE, PRUNED, CHOSEN = "dense", "prune-neurons", "budget"
ALLOWED = "structured-feed-forward,prune-neurons"
"""What a budget chooses among, block by block."""
IN_BLOCKS = re.compile(r"\.mlp\.|\.intermediate\.dense\.weight|layer\.[0-9]+\.output\.dense\.weight")
WINDOW, DECODED = 512, 32
MINILM_RATIO = 0.75
STEPS = ("prefill", "decode")


@dataclass(frozen=True)
class Row:
    """One kind at one ratio, healed as `heal` says or not; `kind` DENSE is the model as it is."""

    model: str
    kind: str
    ratio: float = 1.0
    options: str = ""
    heal: str | None = None

    @property
    def name(self) -> str:
        """As in the table."""
        more = [f"{self.ratio:.0%}"] if self.kind != DENSE else []
        more += self.options.replace("=", " ").split(":") if self.options else []
        more += [f"healed {self.heal}"] if self.heal else []
        return ", ".join([f"{self.model}: {self.kind}", *more])

    @property
    def passes(self) -> str:
        """As --passes takes them."""
        incremental = "" if self.model == "MiniLM" else ",make-incremental"
        first = f"{EXACT}{incremental}"
        if self.kind == DENSE:
            return first
        options = f":{self.options}" if self.options else ""
        if self.kind == CHOSEN:
            return f"{EXACT},{ALLOWED}{incremental}"
        graft = PRUNED if self.kind == PRUNED else f"structured-feed-forward:kind={self.kind}"
        return f"{first},{graft}:ratio={self.ratio:g}{options}"

    @property
    def folder_name(self) -> str:
        """Of its artifact."""
        return "".join(c if c.isalnum() else "-" for c in self.name)


def main() -> None:
    """Compile what is missing, measure what is missing, write after every row."""
    arguments = _arguments()
    console = Console(stderr=True)
    documents = TextFolder.read(arguments.text)
    data = documents.link_calibration(arguments.artifacts / "calibration-text")
    record = _earlier(arguments)
    for row in _rows(arguments):
        known = record["rows"].setdefault(row.name, {"passes": row.passes, "heal": row.heal})
        for name, value in _missing(row, known, documents, data, arguments):
            known[name] = value
            console.print(f"{row.name}: {name} {json.dumps(value)}", markup=False)
            _write(record)
    console.print(_page(record), markup=False)


def _missing(
    row: Row, known: dict[str, Any], documents: TextFolder, data: Path, arguments: argparse.Namespace
) -> Iterator[tuple[str, Any]]:
    """What a row lacks, by name, as it is found."""
    folder = arguments.artifacts / row.folder_name
    if not folder.is_dir():
        yield "compile_seconds", _compile(row, folder, data, arguments)
    if "model_mb" not in known:
        yield "model_mb", round(sum(path.stat().st_size for path in folder.glob("model.*")) / 1e6, 1)
    if row.model == "MiniLM":
        if "quality" not in known:
            yield "quality", _sentences(folder, arguments.threads)
        return
    if row.kind != DENSE and known.get("quality", {}).get("tokens", 0) < arguments.tokens:
        yield "quality", _perplexity(folder, documents, arguments)
    if row.kind != DENSE and arguments.speed and "speed" not in known:
        dense = arguments.artifacts / Row(row.model, DENSE).folder_name
        yield "speed", decoding_gain(folder, dense, WINDOW, DECODED, arguments.threads, arguments.rounds)


def _compile(row: Row, folder: Path, data: Path, arguments: argparse.Namespace) -> float:
    """Seconds that it took."""
    checkpoint = packaged_checkpoint() if row.model == "MiniLM" else arguments.checkpoint
    command = [
        sys.executable, "-m", "compiler.cli", str(checkpoint), "--passes", row.passes, "--data", str(data),
        "-o", str(folder), *(("--heal", row.heal) if row.heal else ()),
        *(("--budget", f"size={_size_share(checkpoint, row.ratio):.4f}") if row.kind == CHOSEN else ()),
    ]  # fmt: skip
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return round(time.perf_counter() - started, 1)


def _size_share(checkpoint: Path, ratio: float) -> float:
    """What is left of a model's weights where `ratio` is of those of its feed-forward blocks."""
    counts = weight_counts(checkpoint)
    blocks = sum(count for name, count in counts.items() if IN_BLOCKS.search(name))
    return 1 - (1 - ratio) * blocks / sum(counts.values())


def _perplexity(folder: Path, documents: TextFolder, arguments: argparse.Namespace) -> dict[str, float]:
    """Beside transformers in float32, over windows of held-out text."""
    tokenizer = arguments.checkpoint / "tokenizer.json"
    windows = held_out_windows(documents.held_out, tokenizer, WINDOW, arguments.tokens)
    sides = {
        "original": transformers_logits(arguments.checkpoint, arguments.threads),
        "artifact": artifact_logits(folder, arguments.threads),
    }
    figures = {name: SideFigures() for name in sides}
    for tokens in windows:
        add_window(figures, sides, tokens)
    found = figures["artifact"].summary(figures["original"])
    kept = ("perplexity", "perplexity_ratio", "ratio_standard_error", "kl_divergence", "top1_agreement")
    return {"tokens": sum(map(len, windows)), **{name: round(found[name], 5) for name in kept}}


def _sentences(folder: Path, threads: int) -> dict[str, float]:
    """Cosines of embeddings to those of the checkpoint in torch."""
    checkpoint = packaged_checkpoint()
    inputs = encode(checkpoint, held_out_texts())
    reference, found = open_torch(checkpoint, threads)[0], open_artifact(folder, threads)[0]
    rows = [np.concatenate([np.asarray(run(one)) for one in inputs]).astype(np.float64) for run in (reference, found)]
    return {name: round(float(value), 5) for name, value in fidelity(*rows).items()}


def _rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """The dense model first: others are timed beside it."""
    if arguments.speed:
        yield Row(arguments.checkpoint.name, DENSE)
    if not arguments.minilm_only:
        for ratio in arguments.ratios:
            for kind in arguments.kinds:
                yield Row(arguments.checkpoint.name, kind, ratio, arguments.options, arguments.heal)
    if arguments.minilm:
        for kind in arguments.kinds:
            yield Row("MiniLM", kind, MINILM_RATIO, arguments.options, arguments.heal)


def _earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    machine = {"processor": processor(), "threads": arguments.threads, "python": platform.python_version()}
    try:
        found: dict[str, Any] = json.loads((RESULTS / "structured_feed_forward.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"machine": machine, "window": WINDOW, "decoded": DECODED, "rows": {}}
    if found["machine"] != machine:
        for row in found["rows"].values():
            row.pop("speed", None)
    return {**found, "machine": machine}


def _write(record: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "structured_feed_forward.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "structured_feed_forward.md").write_text(_page(record), encoding="utf-8")


def _page(record: dict[str, Any]) -> str:
    machine = record["machine"]
    lines = [
        "# Feed-forward blocks of structured layers",
        "",
        f"{machine['processor']}; {machine['threads']} threads. All feed-forward blocks at once, at a part of their "
        f"numbers; ratio of perplexities to transformers in float32 on held-out windows of {record['window']} tokens, "
        "with its standard error over windows; speed in tokens a second and over that of the dense artifact, in turns: "
        f"a prompt of {record['window']} tokens, and {record['decoded']} tokens after it.",
        "",
        "| row | model MB | perplexity ratio | KL, nats | tokens scored | prefill | decode |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = record["rows"]
    for name, row in rows.items():
        quality, speed = row.get("quality", {}), row.get("speed", {})
        if "perplexity_ratio" in quality:
            ratio = f"{quality['perplexity_ratio']:.3f} ± {quality['ratio_standard_error']:.3f}"
            cells = [ratio, f"{quality['kl_divergence']:.4f}", f"{quality['tokens']:,}"]
            timed = [(f"{speed[f'{what}_tokens_per_second']:.0f}", speed[f"{what}_gain"]) for what in STEPS if speed]
            cells += [f"{rate} ({gain:.2f}x)" for rate, gain in timed] or ["", ""]
            lines.append(f"| {name} | {row['model_mb']} | {' | '.join(cells)} |")
    lines += ["", "| row | model MB | mean cosine | least | neighbour kept |", "| --- | --- | --- | --- | --- |"]
    for name, row in rows.items():
        if "mean_cosine" in (quality := row.get("quality", {})):
            cells = [f"{quality[key]:.4f}" for key in ("mean_cosine", "least_cosine", "nearest_neighbour_kept")]
            lines.append(f"| {name} | {row['model_mb']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--kinds", nargs="*", default=["low-rank", "monarch", "block-dense"])
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.95, 0.9, 0.75, 0.5])
    parser.add_argument("--options", default="", help="more options of the pass, as in --passes")
    parser.add_argument("--heal", help="as the command takes it, for instance 15:guided=true")
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens that are scored, at least")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-speed", dest="speed", action="store_false")
    parser.add_argument("--no-minilm", dest="minilm", action="store_false")
    parser.add_argument("--minilm-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.options and CHOSEN in arguments.kinds:
        parser.error("--options are those of one pass: a budget chooses among several")
    return arguments


if __name__ == "__main__":
    main()
