"""Latency of an artifact, alone or against others in the same run: rounds that alternate the sides, median and spread.

A round calls each side several times in a row, the side that goes first changing from round to round, and keeps the
median of those calls. What is reported is the median of the rounds and their quartiles, and the ratio of two sides
round by round, so that a slow moment of the machine hits both sides alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError, nearest_hint
from compiler.runtime.contenders import Arrays, Contender, Run, artifact_contender
from compiler.runtime.engines import first_line
from compiler.runtime.footprint import Footprint, measure_footprint
from compiler.runtime.golden import read_golden
from compiler.runtime.manifest import Manifest, TensorRecord, read_manifest

SETTLE_SECONDS = 0.005
"""Pause before a side's turn, for the threads of the side before to stop spinning."""


@dataclass(frozen=True)
class BenchOptions:
    """What is timed.

    `sizes` sets named dims, such as batch and sequence; dims left out keep their size in the golden inputs.
    """

    sizes: Mapping[str, int]
    threads: int | None = None
    rounds: int = 20
    calls: int = 5
    warmup: int = 3


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        lower, middle, upper = (
            statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        )
        return cls(middle, lower, upper)


@dataclass(frozen=True)
class BenchSide:
    """What was measured of one side; `ratio` is its latency over that of the first side (above 1: it is slower)."""

    name: str
    latency_seconds: Spread
    ratio: Spread
    bytes: int | None
    footprint: Footprint | None


@dataclass(frozen=True)
class BenchReport:
    """All sides, the first being the artifact; `shapes` are those of the inputs that were timed."""

    sides: tuple[BenchSide, ...]
    shapes: dict[str, tuple[int, ...]]
    threads: int | None
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`; seconds and bytes."""
        return {
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "threads": self.threads,
            "rounds": self.rounds,
            "sides": [
                {
                    "name": side.name,
                    "latency_seconds": vars(side.latency_seconds),
                    "ratio": vars(side.ratio),
                    "bytes": side.bytes,
                    "footprint": None if side.footprint is None else vars(side.footprint),
                }
                for side in self.sides
            ],
        }

    def text(self) -> str:
        """A table in plain text."""
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())
        threads = "threads as the runtime chooses" if self.threads is None else f"threads: {self.threads}"
        lines = [f"{shapes}; {threads}; median of {self.rounds} alternating rounds (quartiles)"]
        width = max(len(side.name) for side in self.sides)
        return "\n".join([*lines, *(self._line(side, width) for side in self.sides)])

    def _line(self, side: BenchSide, width: int) -> str:
        latency = side.latency_seconds
        spread = f"({latency.lower * 1e3:.2f} to {latency.upper * 1e3:.2f})"
        parts = [f"  {side.name:{width}}  {latency.median * 1e3:8.2f} ms {spread}"]
        if side is not self.sides[0]:
            parts.append(f"{side.ratio.median:5.2f}x the time ({side.ratio.lower:.2f} to {side.ratio.upper:.2f})")
        if side.bytes is not None:
            parts.append(f"{side.bytes / 1e6:.1f} MB")
        if side.footprint is not None:
            opening, memory = side.footprint.open_seconds * 1e3, side.footprint.resident_bytes / 1e6
            parts.append(f"opens in {opening:.0f} ms, holds {memory:.0f} MB of memory")
        return "  ".join(parts)


def bench(folder: Path, options: BenchOptions, against: Sequence[Contender] = ()) -> BenchReport:
    """Time the artifact in `folder`, alternating with `against` on the same inputs.

    Raises CompilerError on what cannot run.
    """
    manifest = read_manifest(folder)
    inputs = bench_inputs(manifest, read_golden(folder / manifest.golden.file).inputs, options.sizes)
    sides = [artifact_contender(folder), *against]
    runs = [_loaded(side, options, inputs) for side in sides]
    seconds = _alternate(runs, inputs, options)
    footprints = [measure_footprint(side.path, inputs, options.threads) if side.path else None for side in sides]
    return BenchReport(
        sides=tuple(
            BenchSide(
                side.name,
                Spread.of(own),
                Spread.of([mine / first for mine, first in zip(own, seconds[0], strict=True)]),
                side.bytes,
                footprint,
            )
            for side, own, footprint in zip(sides, seconds, footprints, strict=True)
        ),
        shapes={name: array.shape for name, array in inputs.items()},
        threads=options.threads,
        rounds=options.rounds,
    )


def bench_inputs(manifest: Manifest, golden: Arrays, sizes: Mapping[str, int]) -> Arrays:
    """The golden inputs repeated or cut to `sizes`: values that the model is known to take, in any shape."""
    for name in sizes:
        if name not in manifest.dimensions:
            hint = nearest_hint(
                name, manifest.dimensions, f"Dims: {', '.join(manifest.dimensions) or 'none, all sizes are fixed'}."
            )
            raise CompilerError("choosing shapes", f"there is no dim {name!r}", hint)
    if manifest.generation is not None:
        golden, sizes = _incremental(golden, sizes)
    return {spec.name: _resized(golden[spec.name], spec, sizes) for spec in manifest.inputs}


def _incremental(golden: Arrays, sizes: Mapping[str, int]) -> tuple[Arrays, dict[str, int]]:
    """A call after which a text has `total_sequence` tokens, `sequence` of them new: all that fit together.

    By default all tokens are new and the states have room for no more.
    """
    new = sizes.get("sequence", golden["input_ids"].shape[1])
    total = max(sizes.get("total_sequence", new), new)
    fitting = {**sizes, "sequence": new, "total_sequence": total, "capacity": max(sizes.get("capacity", total), total)}
    last = {"logit_positions": np.array([new - 1])} if "logit_positions" in golden else {}
    return {**golden, **last}, fitting


def _resized(array: np.ndarray[Any, Any], spec: TensorRecord, sizes: Mapping[str, int]) -> np.ndarray[Any, Any]:
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, str) and dim in sizes:
            array = np.take(array, np.arange(sizes[dim]) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)


def _loaded(side: Contender, options: BenchOptions, inputs: Arrays) -> Run:
    doing = f"benching {side.name}"
    try:
        run = side.load(options.threads)
        for _ in range(max(1, options.warmup)):
            run(inputs)
    except CompilerError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {array.dtype.name}{list(array.shape)}" for name, array in inputs.items())
        raise CompilerError(doing, first_line(error), f"It was given {shapes}.") from error
    return run


def _alternate(runs: Sequence[Run], inputs: Arrays, options: BenchOptions) -> list[list[float]]:
    """Seconds of every round, by side."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(options.rounds):
        for turn in range(len(runs)):
            index = (number + turn) % len(runs)
            time.sleep(SETTLE_SECONDS if len(runs) > 1 else 0)
            runs[index](inputs)
            seconds[index].append(statistics.median(_timed(runs[index], inputs) for _ in range(options.calls)))
    return seconds


def _timed(run: Run, inputs: Arrays) -> float:
    started = time.perf_counter()
    run(inputs)
    return time.perf_counter() - started
