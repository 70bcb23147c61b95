"""What neurons, heads and layers that go cost a language model, and how much faster its artifact is without them.

    python benchmarks/pruning.py CHECKPOINT --text FOLDER --artifacts FOLDER [--tokens 20480] [--heal MINUTES]
                                 [--only NAME ...] [--rounds 9] [--no-compile]

CHECKPOINT is a transformers folder, for instance of SmolLM2-135M-Instruct. Every eighth document of --text is held out;
the others are what variants calibrate and heal on. Variants that --artifacts does not hold yet are compiled into it
first. All read the same windows of 512 tokens side by side through ONNX Runtime; the float32 artifact is the original.
Then all read a prompt of 512 tokens and write tokens behind 128, by turns, with one thread: a speed is the median over
rounds of the original's seconds over its own of the same round. The table goes to the terminal and to
benchmarks/results/pruning.*; a run with --only writes nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from held_out_text import TextFolder, held_out_windows
from minilm_int8 import processor
from quality_figures import SideFigures, add_window, artifact_logits
from rich.console import Console

from compiler.evidence.turns import alternating_seconds
from compiler.runtime.generation.decoder import Decoder

RESULTS = Path(__file__).resolve().parent / "results"
WINDOW = 512
PROMPT, CONTEXT, WRITTEN = 512, 128, 16
FIRST, LAST = "canonicalize,fuse", "make-incremental"
ORIGINAL = "float32"
VARIANTS = {
    ORIGINAL: "",
    "neurons 90 %": "prune-neurons:ratio=0.9:multiple=32",
    "neurons 75 %": "prune-neurons:ratio=0.75:multiple=32",
    "neurons 75 %, not fitted anew": "prune-neurons:ratio=0.75:multiple=32:refit=false",
    "neurons 75 %, by activations": "prune-neurons:ratio=0.75:multiple=32:saliency=activations",
    "neurons 75 %, by magnitude": "prune-neurons:ratio=0.75:multiple=32:saliency=magnitude:refit=false",
    "heads 2 of 3 groups": "prune-heads:ratio=0.67",
    "heads 2 of 3 groups, not fitted anew": "prune-heads:ratio=0.67:refit=false",
    "heads 2 of 3 groups in a quarter of the layers": "prune-heads:ratio=0.67:layers=auto-0.25",
    "layers 90 %, by influence": "prune-layers:ratio=0.9",
    "layers 90 %, by recall and KL": "prune-layers:layers=auto-0.1",
    "layers 75 %, by influence": "prune-layers:ratio=0.75",
}
"""Passes between those that change nothing and make-incremental."""
HEADINGS = ("variant", "perplexity", "ratio", "KL, nats", "top-1 kept", "model MB", "decode", "prefill")


def main() -> None:
    """Compile what is missing, measure, show, write."""
    arguments = _arguments()
    console = Console(stderr=True)
    documents = TextFolder.read(arguments.text)
    wanted = [name for name in VARIANTS if arguments.only is None or name in (ORIGINAL, *arguments.only)]
    if not arguments.no_compile:
        _compile_missing(wanted, documents, arguments, console)
    folders = {name: folder for name in wanted if (folder := _folder(arguments, name)).is_dir()}
    windows = held_out_windows(documents.held_out, arguments.checkpoint / "tokenizer.json", WINDOW, arguments.tokens)
    figures = _quality(folders, windows, arguments.threads, console)
    speeds = _speeds(folders, windows[0], arguments.rounds)
    record = {
        "machine": {"processor": processor(), "threads": 1, "python": platform.python_version()},
        "checkpoint": arguments.checkpoint.name,
        "healing_minutes": arguments.heal,
        "held_out": {"documents": len(documents.held_out), "tokens": sum(map(len, windows)), "window": WINDOW},
        "variants": {
            name: {
                "passes": _passes(name),
                "model_mb": (folder / "model.onnx.data").stat().st_size / 1e6,
                **figures[name].summary(figures[ORIGINAL]),
                **speeds[name],
            }
            for name, folder in folders.items()
        },
    }
    text = _page(record)
    console.print(text, markup=False)
    if arguments.only is None:
        (RESULTS / "pruning.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "pruning.md").write_text(text, encoding="utf-8")


def _passes(name: str) -> str:
    return ",".join(filter(None, (FIRST, VARIANTS[name], LAST)))


def _folder(arguments: argparse.Namespace, name: str) -> Path:
    folder: Path = arguments.artifacts / "".join(c if c.isalnum() else "-" for c in name)
    return folder


def _compile_missing(
    wanted: Sequence[str], documents: TextFolder, arguments: argparse.Namespace, console: Console
) -> None:
    """Each in a process of its own. One that fails is left out."""
    data = documents.link_calibration(arguments.artifacts / "calibration-text")
    for name in wanted:
        if _folder(arguments, name).is_dir():
            continue
        started = time.perf_counter()
        command = [
            sys.executable, "-m", "compiler.cli", str(arguments.checkpoint), "--passes", _passes(name),
            "--data", str(data), "-o", str(_folder(arguments, name)),
            *(("--heal", str(arguments.heal)) if arguments.heal and name != ORIGINAL else ()),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        outcome = "done" if done.returncode == 0 else "\n".join(done.stderr.strip().splitlines()[-2:])
        console.print(f"{name}: {outcome} after {time.perf_counter() - started:.0f} s", markup=False)


def _quality(
    folders: dict[str, Path], windows: Sequence[np.ndarray], threads: int, console: Console
) -> dict[str, SideFigures]:
    sides = {name: artifact_logits(folder, threads) for name, folder in folders.items()}
    figures = {name: SideFigures() for name in sides}
    for index, tokens in enumerate(windows, 1):
        add_window(figures, sides, tokens)
        console.print(f"window {index} of {len(windows)}")
    return figures


def _speeds(folders: dict[str, Path], tokens: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Times the original's speed, writing and reading."""
    decoders = {name: Decoder.open(folder, rows=1, threads=1) for name, folder in folders.items()}
    prompt = [int(token) for token in tokens[:PROMPT]]

    def reading(decoder: Decoder) -> Callable[[], object]:
        return lambda: (decoder.clear(0), decoder.prefill(0, prompt))

    def writing(decoder: Decoder) -> Callable[[], object]:
        def write() -> None:
            decoder.take_back(0, CONTEXT)
            for token in prompt[:WRITTEN]:
                decoder.decode([token])

        return write

    read = alternating_seconds({name: reading(one) for name, one in decoders.items()}, rounds)
    for one in decoders.values():
        one.clear(0)
        one.prefill(0, prompt[:CONTEXT])
    written = alternating_seconds({name: writing(one) for name, one in decoders.items()}, rounds)
    return {name: {"decode_speedup": _gain(written, name), "prefill_speedup": _gain(read, name)} for name in decoders}


def _gain(seconds: dict[str, list[float]], name: str) -> float:
    return statistics.median(ours / own for ours, own in zip(seconds[ORIGINAL], seconds[name], strict=True))


def _page(record: dict[str, Any]) -> str:
    rows = [HEADINGS, ["---"] * len(HEADINGS)]
    for name, one in record["variants"].items():
        ratio = f"{one['perplexity_ratio']:.3f} ± {one['ratio_standard_error']:.3f}"
        speeds = [f"{one[key]:.2f}x" for key in ("decode_speedup", "prefill_speedup")]
        kept = f"{one['top1_agreement'] * 100:.1f} %"
        size = f"{one['model_mb']:.1f}"
        rows.append([name, f"{one['perplexity']:.2f}", ratio, f"{one['kl_divergence']:.3f}", kept, size, *speeds])
    held_out = record["held_out"]
    healed = f"healed for {record['healing_minutes']} minutes" if record["healing_minutes"] else "not healed"
    about = (
        f"{record['checkpoint']}, {healed}: {held_out['tokens']:,} tokens of {held_out['documents']} held-out "
        f"documents, windows of {held_out['window']}. Perplexity and speed against the float32 artifact; writing "
        f"behind {CONTEXT} tokens and reading {PROMPT}, one thread of {record['machine']['processor']}."
    )
    return f"# What pruning costs and gives\n\n{about}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20 * 1024)
    parser.add_argument("--heal", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS))
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
