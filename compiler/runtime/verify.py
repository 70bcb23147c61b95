"""Whether an artifact is whole and gives, on this machine, the numbers that it gave where it was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CompilerError
from compiler.runtime.golden import Golden, read_golden
from compiler.runtime.integrity import COPY_AGAIN, FileFinding, check_files
from compiler.runtime.manifest import Manifest, read_manifest
from compiler.runtime.session import Session


@dataclass(frozen=True)
class OutputComparison:
    """One output on the golden inputs, against what the payload gave at build and against the Program in eager.

    Errors are the largest difference relative to the largest golden magnitude; None where there was nothing to
    compare with. Integer and boolean outputs must be equal: their error is the share of elements that differ.
    """

    name: str
    error: float
    tolerance: float
    reference_error: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (never so when it is not a number)."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. `outputs` is empty when the files already failed: a damaged payload is not opened."""

    folder: Path
    manifest: Manifest
    files: tuple[FileFinding, ...]
    outputs: tuple[OutputComparison, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every file is what was recorded and every output within its tolerance."""
        return not self.files and bool(self.outputs) and all(output.passed for output in self.outputs)

    def require(self) -> None:
        """Raise CompilerError, naming the files or outputs at fault, unless everything passed."""
        doing = f"verifying {self.folder}"
        if self.files:
            raise CompilerError(doing, "; ".join(map(str, self.files)), COPY_AGAIN)
        wrong = [f"{o.name} is off by {o.error:.2g} (allowed: {o.tolerance:.2g})" for o in self.outputs if not o.passed]
        if wrong:
            hint = (
                "This processor or this version of the runtime computes otherwise: compile the model for this machine."
            )
            raise CompilerError(doing, f"the golden inputs give other numbers here: {'; '.join(wrong)}", hint)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "artifact": str(self.folder),
            "name": self.manifest.name,
            "digest": self.manifest.digest,
            "passed": self.passed,
            "files": {finding.name: finding.problem for finding in self.files},
            "file_count": len(self.manifest.files) + 1,
            "outputs": [
                {
                    "name": output.name,
                    "error": _finite(output.error),
                    "tolerance": output.tolerance,
                    "reference_error": _finite(output.reference_error),
                    "passed": output.passed,
                }
                for output in self.outputs
            ],
        }

    def text(self) -> str:
        """A few lines for people."""
        count, size = len(self.manifest.files) + 1, sum(record.bytes for record in self.manifest.files.values())
        lines = [f"{self.manifest.name}: {count - len(self.files)} of {count} files as recorded, {size / 1e6:.1f} MB"]
        lines += [f"  {finding}" for finding in self.files]
        for output in self.outputs:
            word = "same numbers as where it was made" if output.passed else "OTHER NUMBERS than where it was made"
            lines.append(f"  {output.name}: {word}, error {output.error:.2g} (allowed {output.tolerance:.2g})")
        lines.append(f"digest {self.manifest.digest}")
        return "\n".join(lines)


def verify(folder: Path, threads: int | None = None) -> VerifyReport:
    """Check every file, then the golden outputs.

    Raises CompilerError when there is no artifact, or it cannot be opened here.
    """
    manifest = read_manifest(folder)
    findings = check_files(folder, manifest)
    if findings:
        return VerifyReport(folder, manifest, findings)
    golden = read_golden(folder / manifest.golden.file)
    found = Session.open(folder, threads).run(golden.inputs)
    outputs = compare_outputs(found, golden, manifest)
    return VerifyReport(folder, manifest, (), outputs)


def compare_outputs(
    found: dict[str, np.ndarray[Any, Any]], golden: Golden, manifest: Manifest
) -> tuple[OutputComparison, ...]:
    """Each output against the golden ones: the payload's at build, or the Program's where the payload could not run.

    States that are held as integers are rounded numbers, and compared as numbers are.
    """
    comparisons = []
    states = {state.present for state in manifest.generation.states} if manifest.generation else set()
    for spec in manifest.outputs:
        array = found[spec.name]
        is_number = spec.name in states or np.issubdtype(array.dtype, np.inexact)
        tolerance = manifest.golden.tolerance if is_number else 0.0
        reference = golden.reference.get(spec.name)
        expected = golden.outputs.get(spec.name, reference)
        if expected is None:
            raise CompilerError(
                f"verifying {manifest.name}", f"there is no golden {spec.name}", "Compile the model again."
            )
        reference_error = None if reference is None else output_error(array, reference, is_number)
        error = output_error(array, expected, is_number)
        comparisons.append(OutputComparison(spec.name, error, tolerance, reference_error))
    return tuple(comparisons)


def output_error(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], is_number: bool = False) -> float:
    """Largest difference over the largest finite expected magnitude; for integers and booleans the share that differs,
    unless they are said to stand for numbers.

    Equal infinities and NaN at the same place do not count. Another shape or dtype is infinitely wrong.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if expected.size == 0:
        return 0.0
    if not is_number and not np.issubdtype(expected.dtype, np.inexact):
        return float(np.mean(found != expected))
    left, right = found.astype(np.float64), expected.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    if not np.isfinite(left[~same]).all() or not np.isfinite(right[~same]).all():
        return float("inf")
    largest = float(np.abs(left[~same] - right[~same]).max(initial=0.0))
    scale = float(np.abs(right[np.isfinite(right)]).max(initial=0.0))
    return largest / max(scale, 1e-6)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
