"""Sides of a benchmark, each a process of its own, and what is measured of them."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORKER = Path(__file__).resolve().parent / "contender_worker.py"
CALLS = 5
SETTLE_SECONDS = 0.02
"""Pause before a side's turn, for the threads of the side before to stop spinning."""


class Side:
    """One contender, opened in its own process by its own interpreter."""

    def __init__(
        self,
        name: str,
        python: str | Path,
        engine: str,
        path: Path,
        threads: int,
        worker: Path = WORKER,
        more: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.path = path
        command = [str(python), str(worker), engine, str(path), "--threads", str(threads), *more]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def file_bytes(self) -> int:
        """What has to be shipped: all files of a folder, or a model with the weights beside it."""
        if self.path.is_dir():
            return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        beside = [self.path, self.path.with_suffix(".bin")]
        return sum(file.stat().st_size for file in beside if file.exists())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} stopped; run its worker by hand: {' '.join(map(str, self._process.args))}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure_latency(sides: Sequence[Side], inputs: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of one call by side: the median of a few calls, one figure a round. Sides take turns at going first."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:
        side.ask({"do": "time", "inputs": str(inputs), "calls": CALLS})
    for number in range(rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            time.sleep(SETTLE_SECONDS)
            answer = side.ask({"do": "time", "inputs": str(inputs), "calls": CALLS})
            seconds[side.name].append(statistics.median(answer["seconds"]))
    return seconds


def measure_fidelity(
    sides: Sequence[Side], texts: Sequence[Path], work: Path, reference: str
) -> dict[str, dict[str, float]]:
    """Mean and least cosine to the reference side, and how often a text keeps its nearest neighbour."""
    rows = {}
    for index, side in enumerate(sides):
        target = work / f"rows-{index}.npy"
        side.ask({"do": "embed", "inputs": [str(path) for path in texts], "to": str(target)})
        rows[side.name] = np.load(target).astype(np.float64)
    return {side.name: fidelity(rows[reference], rows[side.name]) for side in sides}


def fidelity(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> dict[str, float]:
    """Of embeddings [texts, width]: cosines to those expected, and the share whose nearest neighbour is the same."""
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosine = (expected * found).sum(1)
    kept = _nearest(expected) == _nearest(found)
    return {"mean_cosine": cosine.mean(), "least_cosine": cosine.min(), "nearest_neighbour_kept": kept.mean()}


def _nearest(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    alike = rows @ rows.T
    np.fill_diagonal(alike, -np.inf)
    nearest: np.ndarray[Any, Any] = alike.argmax(1)
    return nearest


def weight_counts(checkpoint: Path) -> dict[str, int]:
    """How many numbers each tensor of a transformers folder has, by name."""
    from safetensors import safe_open

    with safe_open(checkpoint / "model.safetensors", "np") as file:
        names = file.keys()
        return {name: math.prod(file.get_slice(name).get_shape()) for name in names}


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and least, in milliseconds."""
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    figures = {"median": median, "lower": lower, "upper": upper, "least": min(seconds)}
    return {name: 1000 * value for name, value in figures.items()}
