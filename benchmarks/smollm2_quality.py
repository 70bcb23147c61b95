"""What quantization costs a language model: perplexity, divergence and agreement on text that no compile has seen.

    python benchmarks/smollm2_quality.py CHECKPOINT --text FOLDER --artifacts FOLDER [--gguf FILE] [--tokens 20480]
                                         [--only NAME ...]

CHECKPOINT is a transformers folder, for instance of SmolLM2-135M-Instruct; --gguf the file with the same weights, for
the variants that take its blocks as they are. Every eighth document of --text is held out; the others are what variants
calibrate on. Variants that --artifacts does not hold yet are compiled into it first (with
--no-compile they are left out). Then all variants read the same windows of 512 tokens side by side, through ONNX
Runtime, and transformers, in float32, is the original that they are compared with. The table goes to the terminal and
to benchmarks/results/smollm2_quality.*; a run with --only writes nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from held_out_text import TextFolder, held_out_windows
from minilm_int8 import processor
from quality_figures import SideFigures, add_window, artifact_logits, transformers_logits
from rich.console import Console

HERE = Path(__file__).resolve().parent
WINDOW = 512
ORIGINAL = "transformers float32"
FIRST = "canonicalize,fuse,make-incremental"
PLAIN = "rounding=nearest:clip=none:keep_grid=false"
IN_8_BITS = "quantize:bits=8:activations=none:embeddings=8"
MIXED = "quantize:bits=auto-4.8:group=64"


@dataclass(frozen=True)
class Variant:
    """Passes after those that change nothing, minutes of healing, and whether the GGUF file is what they start from."""

    grafts: str = ""
    heal: int | None = None
    of_gguf: bool = False

    @property
    def passes(self) -> str:
        """As --passes takes them."""
        return f"{FIRST},{self.grafts}" if self.grafts else FIRST


VARIANTS = {
    "float32": Variant(),
    "8-bit": Variant(f"{IN_8_BITS}:group=16"),
    "8-bit, round to nearest": Variant(f"{IN_8_BITS}:group=16:{PLAIN}"),
    "8-bit, blocks of 32, round to nearest": Variant(f"{IN_8_BITS}:group=32:{PLAIN}"),
    "8-bit weights and inputs": Variant("smooth,quantize:activations=rows:embeddings=8:rounding=nearest"),
    "4-bit": Variant("quantize:bits=4"),
    "4-bit, head too": Variant("quantize:bits=4:embeddings=4"),
    "4-bit, blocks of 64": Variant("quantize:bits=4:group=64"),
    "4-bit, round to nearest": Variant(f"quantize:bits=4:{PLAIN}"),
    "4 and 8 bits, 4.8 on average": Variant(MIXED),
    "4 and 8 bits, healed": Variant(MIXED, heal=8),
    "2 and 4 bits, 3 on average": Variant("quantize:bits=auto-3"),
    "2 and 4 bits, healed": Variant("quantize:bits=auto-3", heal=5),
    "2 and 4 bits, round to nearest": Variant(f"quantize:bits=auto-3:{PLAIN}"),
    "GGUF Q4_1 as it is": Variant(of_gguf=True),
    "int8 cache": Variant("quantize-cache:bits=8"),
    "4 and 8 bits, int8 cache": Variant(f"{MIXED},quantize-cache:bits=8"),
    "GGUF Q4_1, int8 cache": Variant("quantize-cache:bits=8", of_gguf=True),
}
HEADINGS = (
    "variant", "perplexity", "ratio", "KL, nats", "top-1 kept", "model MB", "artifact MB",
)  # fmt: skip


def main() -> None:
    """Compile what is missing, measure, show, write."""
    arguments = _arguments()
    console = Console(stderr=True)
    documents = TextFolder.read(arguments.text)
    wanted = {
        name: variant
        for name, variant in VARIANTS.items()
        if (arguments.only is None or name in arguments.only) and (arguments.gguf or not variant.of_gguf)
    }
    seconds = {} if arguments.no_compile else _compile_missing(wanted, documents, arguments, console)
    folders = {name: folder for name in wanted if (folder := _folder(arguments, name)).is_dir()}
    figures, token_count = _measure(folders, documents, arguments, console)
    record = {
        "machine": {"processor": processor(), "threads": arguments.threads, "python": platform.python_version()},
        "checkpoint": arguments.checkpoint.name,
        "held_out": {
            "documents": len(documents.held_out), "tokens": token_count, "window": WINDOW,
            "text": arguments.text.name, "calibration_documents": len(documents.calibration),
        },
        "variants": {
            name: {
                "passes": wanted[name].passes if name in wanted else None,
                "healing_minutes": wanted[name].heal if name in wanted else None,
                "compile_seconds": seconds.get(name),
                **_sizes(folders.get(name)),
                **side.summary(figures[ORIGINAL]),
            }
            for name, side in figures.items()
        },
    }  # fmt: skip
    text = _page(record)
    console.print(text, markup=False)
    if arguments.only is None:
        results = HERE / "results"
        (results / "smollm2_quality.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (results / "smollm2_quality.md").write_text(text, encoding="utf-8")


def _folder(arguments: argparse.Namespace, name: str) -> Path:
    folder: Path = arguments.artifacts / "".join(c if c.isalnum() else "-" for c in name)
    return folder


def _compile_missing(
    wanted: dict[str, Variant], documents: TextFolder, arguments: argparse.Namespace, console: Console
) -> dict[str, float]:
    """Seconds by variant that was compiled; each in a process of its own. One that fails is left out."""
    data = documents.link_calibration(arguments.artifacts / "calibration-text")
    seconds = {}
    for name, variant in wanted.items():
        folder = _folder(arguments, name)
        if folder.is_dir():
            continue
        console.print(f"{name}: compiling with {variant.passes}")
        started = time.perf_counter()
        command = [
            sys.executable, "-m", "compiler.cli", str(arguments.gguf if variant.of_gguf else arguments.checkpoint),
            "--passes", variant.passes, "--data", str(data), "-o", str(folder),
            *(("--heal", str(variant.heal)) if variant.heal else ()),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        seconds[name] = time.perf_counter() - started
        outcome = "done" if done.returncode == 0 else "\n".join(done.stderr.strip().splitlines()[-2:])
        console.print(f"{name}: {outcome} after {seconds[name]:.0f} s", markup=False)
    return seconds


def _measure(
    folders: dict[str, Path], documents: TextFolder, arguments: argparse.Namespace, console: Console
) -> tuple[dict[str, SideFigures], int]:
    """Figures by side, over windows that all sides read, and the number of tokens."""
    windows = held_out_windows(documents.held_out, arguments.checkpoint / "tokenizer.json", WINDOW, arguments.tokens)
    sides = {ORIGINAL: transformers_logits(arguments.checkpoint, arguments.threads)}
    sides |= {name: artifact_logits(folder, arguments.threads) for name, folder in folders.items()}
    figures = {name: SideFigures() for name in sides}
    started = time.perf_counter()
    for index, tokens in enumerate(windows, 1):
        add_window(figures, sides, tokens)
        left = (time.perf_counter() - started) / index * (len(windows) - index)
        ratios = ", ".join(
            f"{name} {side.summary(figures[ORIGINAL])['perplexity_ratio']:.4f}" for name, side in figures.items()
        )
        console.print(f"window {index} of {len(windows)}, {left:.0f} s to go; {ratios}", markup=False)
    return figures, sum(map(len, windows))


def _sizes(folder: Path | None) -> dict[str, float]:
    if folder is None:
        return {}
    sizes = {path: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    model = sum(size for path, size in sizes.items() if path.name.startswith("model."))
    return {"model_mb": model / 1e6, "artifact_mb": sum(sizes.values()) / 1e6}


def _page(record: dict[str, Any]) -> str:
    held_out = record["held_out"]
    rows = [HEADINGS, ["---"] * len(HEADINGS)]
    for name, one in record["variants"].items():
        ratio = f"{one['perplexity_ratio']:.4f} ± {one['ratio_standard_error']:.4f}"
        sizes = [f"{one[key]:.1f}" if key in one else "-" for key in ("model_mb", "artifact_mb")]
        kept = f"{one['top1_agreement'] * 100:.1f} %"
        rows.append([name, f"{one['perplexity']:.3f}", ratio, f"{one['kl_divergence']:.5f}", kept, *sizes])
    about = (
        f"{record['checkpoint']}: {held_out['tokens']:,} tokens of {held_out['documents']} held-out documents, "
        f"windows of {held_out['window']} tokens; calibrated on {held_out['calibration_documents']} other documents. "
        "Ratio of perplexities to transformers in float32, with its standard error over windows."
    )
    return f"# What quantization costs\n\n{about}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--tokens", type=int, default=20 * 1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS))
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
