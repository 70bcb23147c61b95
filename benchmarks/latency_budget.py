"""`--budget latency=0.6` on real models: how fast the artifact really is beside the original, and what that cost.

    python benchmarks/latency_budget.py --artifacts FOLDER [--only NAME ...] [--rounds 60] [--no-compile]

Each model is compiled twice by the command, in processes of their own, unless --artifacts holds the result: with
`--passes canonicalize,fuse`, which is the original lowered, and with --budget among few settings, so that a search
takes minutes: int8 products with dynamic and with static ranges, kernels as two thin ones, fewer neurons or channels,
and fewer residual layers.
Vision and audio models calibrate on drawn pages and chords, all-MiniLM-L6-v2 on the sentences that ship. Both artifacts
are opened in this process, input checks included, and run in turns: on one sample as in calibration, and on several
larger ones. A ratio is that of neighbouring turns, its median and quartiles. Fidelity is that of the payload to torch
float32 on samples that no pass has seen. A budget that is out of reach leaves what the compile said of it. The table
goes to the terminal and to benchmarks/results/latency_budget.*; a run with --only adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from minilm_int8 import packaged_checkpoint, processor
from results import earlier_record
from rich.console import Console
from texts import token_row

from compiler.evidence.turns import alternating_seconds

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "frontends" / "onnx_model")]

LIMIT = "latency=0.6"
EXACT = "canonicalize,fuse"
ALLOWED = (
    "quantize:embeddings=8,quantize:activations=static:embeddings=8,low-rank-convolution,prune-neurons,prune-layers"
)
"""What the budget chooses among."""
MINILM = "all-MiniLM-L6-v2"
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Subject:
    """A model, samples to calibrate it on (None: those that ship), and what it is timed on by name."""

    model: Path
    samples: Arrays | None
    timed: Mapping[str, Arrays]


def main() -> None:
    """Compile what is missing, measure, show, write."""
    arguments = _arguments()
    console = Console(stderr=True)
    arguments.artifacts.mkdir(parents=True, exist_ok=True)
    file = RESULTS / "latency_budget.json"
    machine = {"processor": processor(), "threads": arguments.threads, "python": platform.python_version()}
    about = {"machine": machine, "allowed": ALLOWED}
    record = earlier_record(file, about) if arguments.only else about
    models = record.setdefault("models", {})
    for name, make in SUBJECTS.items():
        if arguments.only is None or name in arguments.only:
            subject = make()
            folders = {side: arguments.artifacts / f"{name}-{side}" for side in ("original", "budget")}
            said = "" if arguments.no_compile else _compile(name, subject, folders, console)
            if all(folder.is_dir() for folder in folders.values()):
                models[name] = _figures(subject, folders, arguments)
            elif said:
                models[name] = {"said": said}
    text = _page(record)
    console.print(text, markup=False)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "latency_budget.md").write_text(text, encoding="utf-8")


def _minilm() -> Subject:
    checkpoint = packaged_checkpoint()
    rows = [token_row(checkpoint, count)[None] for count in (128, 256)]
    return Subject(checkpoint, None, {_size(ids): {"input_ids": ids, "attention_mask": ids * 0 + 1} for ids in rows})


def _drawn(name: str, samples: Callable[[], np.ndarray[Any, Any]]) -> Callable[[], Subject]:
    def make() -> Subject:
        from real_models import REAL_MODELS

        model = REAL_MODELS[name]
        large = model.large()
        (key,) = large
        drawn = samples()
        timed = {_size(one): {key: one} for one in (drawn[:1], large[key])}
        return Subject(model.file, {key: drawn}, timed)

    return make


def _pages(count: int, height: int, width: int) -> Callable[[], np.ndarray[Any, Any]]:
    def draw() -> np.ndarray[Any, Any]:
        from real_models import page

        return page(count, height, width)

    return draw


def _chords() -> np.ndarray[Any, Any]:
    """Ten chords of three notes that fade, with a little noise: float32 [10, samples, 1]."""
    from real_models import PITCH_SAMPLES, SAMPLE_RATE

    random = np.random.default_rng(0)
    seconds = np.arange(PITCH_SAMPLES) / SAMPLE_RATE
    sounds = []
    for _ in range(10):
        notes = 440 * 2 ** ((random.choice(np.arange(36, 80), 3, replace=False) - 69) / 12)
        tones = [np.sin(2 * np.pi * note * over * seconds) / over for note in notes for over in (1, 2, 3)]
        fading = np.exp(-seconds * random.uniform(0, 2))
        sounds.append(np.sum(tones, axis=0) / 6 * fading + random.normal(0, 0.003, PITCH_SAMPLES))
    return np.stack(sounds)[..., None].astype(np.float32)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    MINILM: _minilm,
    "ocr-classification": _drawn("ocr-classification", _pages(32, 48, 192)),
    "ocr-detection": _drawn("ocr-detection", _pages(24, 160, 192)),
    "ocr-recognition": _drawn("ocr-recognition", _pages(32, 48, 160)),
    "basic-pitch": _drawn("basic-pitch", _chords),
}


def _compile(name: str, subject: Subject, folders: Mapping[str, Path], console: Console) -> str:
    """Compile what is missing; the last thing that a compile which failed said."""
    said = ""
    data = folders["budget"].with_name(f"{name}.npz")
    if subject.samples is not None:
        np.savez(data, **subject.samples)
    for side, folder in folders.items():
        if folder.is_dir():
            continue
        passes = EXACT if side == "original" else f"{EXACT},{ALLOWED}"
        command = [sys.executable, "-m", "compiler.cli", str(subject.model), "--passes", passes, "-o", str(folder)]
        command += ["--data", str(data)] if subject.samples is not None else []
        command += ["--budget", LIMIT] if side == "budget" else []
        started = time.perf_counter()
        wide = {**os.environ, "COLUMNS": "400"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=wide)
        said = "" if done.returncode == 0 else " ".join(done.stderr.strip().splitlines()[-2:])
        console.print(f"{name}, {side}: {said or 'done'} after {time.perf_counter() - started:.0f} s", markup=False)
    return said


def _figures(subject: Subject, folders: Mapping[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    from compiler.runtime.session import Session

    sessions = {side: Session.open(folder, arguments.threads) for side, folder in folders.items()}
    latency = {}
    for size, inputs in subject.timed.items():
        calls = {side: _call(session, inputs) for side, session in sessions.items()}
        seconds = alternating_seconds(calls, arguments.rounds)
        ratios = [mine / whole for mine, whole in zip(seconds["budget"], seconds["original"], strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        latency[size] = {
            **{f"{side}_ms": 1e3 * statistics.median(found) for side, found in seconds.items()},
            "ratio": {"median": median, "lower": lower, "upper": upper},
        }
    reports = {
        side: json.loads((folder / "report.json").read_text(encoding="utf-8")) for side, folder in folders.items()
    }
    (chosen,) = [one["mix"] for one in reports["budget"]["passes"] if one["mix"] is not None]
    return {
        "latency": latency,
        "fidelity": reports["budget"]["payload"],
        "payload_bytes": {side: report["after"]["payload_bytes"] for side, report in reports.items()},
        "limits": chosen["limits"],
        "places": {"replaced": sum(bool(one["choice"]) for one in chosen["places"]), "all": len(chosen["places"])},
        "compile_seconds": reports["budget"]["seconds"],
    }


def _call(session: Any, inputs: Arrays) -> Callable[[], object]:
    wanted = {spec.name: spec.dtype for spec in session.manifest.inputs}
    given = {name: inputs[name].astype(dtype) for name, dtype in wanted.items()}
    return lambda: session.run(given)


def _size(array: np.ndarray[Any, Any]) -> str:
    return " x ".join(map(str, array.shape))


HEADINGS = ("model", "timed on", "original, ms", "artifact, ms", "artifact / original", "mean cosine", "worst", "MB")


def _page(record: dict[str, Any]) -> str:
    rows = []
    for name, one in record["models"].items():
        if "said" in one:
            rows.append([name, "", "", "", one["said"], "", "", ""])
            continue
        fidelity, sizes = one["fidelity"], one["payload_bytes"]
        for index, (size, found) in enumerate(one["latency"].items()):
            ratio = found["ratio"]
            told = f"{ratio['median']:.3f} ({ratio['lower']:.3f} to {ratio['upper']:.3f})"
            figures = [f"{found['original_ms']:.2f}", f"{found['budget_ms']:.2f}", told]
            megabytes = f"{sizes['original'] / 1e6:.1f} to {sizes['budget'] / 1e6:.1f}"
            kept = [f"{fidelity['mean_cosine']:.4f}", f"{fidelity['worst_cosine']:.4f}", megabytes]
            rows.append([name if index == 0 else "", size, *figures, *(kept if index == 0 else [""] * 3)])
    about = (
        f"`--budget {LIMIT} --passes {EXACT},{ALLOWED}`, no --max-drop, no healing: the artifact in turns with the "
        "original lowered, "
        f"threads: {record['machine']['threads']}, of {record['machine']['processor']}, all of which the search timed "
        "on; medians, and quartiles of the "
        "ratio. A model is calibrated and timed by the search on samples of the first size. Cosines are those of the "
        "payload to torch float32 on samples that no pass has seen."
    )
    lines = [f"| {' | '.join(row)} |" for row in (HEADINGS, ["---"] * len(HEADINGS), *rows)]
    return f"# What a budget of latency gives\n\n{about}\n\n" + "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), help="models by name")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
