"""Whether given arrays are what a model takes: names, dtypes, ranks, and dims that agree and stay in range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.errors import CompilerError, nearest_hint
from compiler.runtime.manifest import Manifest, TensorRecord


def check_inputs(doing: str, manifest: Manifest, given: Mapping[str, object]) -> None:
    """Raise CompilerError for the first thing that does not fit, naming the input and what it should be."""
    names = [spec.name for spec in manifest.inputs]
    takes = f"It takes {'; '.join(map(str, manifest.inputs))}."
    for name in given:
        if name not in names:
            raise CompilerError(doing, f"there is no input {name!r}", nearest_hint(name, names, takes))
    sizes: dict[str, tuple[int, str]] = {}
    for spec in manifest.inputs:
        if spec.name not in given:
            raise CompilerError(doing, f"input {spec.name!r} is missing", takes)
        _check_one(doing, manifest, spec, given[spec.name], sizes)


def _check_one(
    doing: str, manifest: Manifest, spec: TensorRecord, array: object, sizes: dict[str, tuple[int, str]]
) -> None:
    takes = f"It takes {spec}."
    if not isinstance(array, np.ndarray):
        problem = f"input {spec.name!r} is {type(array).__name__}, not a numpy array"
        raise CompilerError(doing, problem, f"{takes} Convert it with numpy.asarray(..., dtype={spec.dtype!r}).")
    if array.dtype.name != spec.dtype:
        hint = f"Convert it with {spec.name}.astype({spec.dtype!r})."
        raise CompilerError(doing, f"input {spec.name!r} is {array.dtype.name} and should be {spec.dtype}", hint)
    if array.ndim != len(spec.shape):
        problem = (
            f"input {spec.name!r} has rank {array.ndim} {list(array.shape)} and should have rank {len(spec.shape)}"
        )
        raise CompilerError(doing, problem, takes)
    for index, (size, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                raise CompilerError(doing, f"dim {index} of input {spec.name!r} is {size} and should be {dim}", takes)
            continue
        allowed = manifest.dimensions[dim]
        if not allowed.allows(size):
            problem = f"{dim!r} (dim {index} of input {spec.name!r}) is {size} and should be {allowed}"
            raise CompilerError(doing, problem, takes)
        known, first = sizes.setdefault(dim, (size, spec.name))
        if known != size:
            problem = f"{dim!r} is {known} in input {first!r} and {size} in input {spec.name!r}"
            raise CompilerError(doing, problem, f"Give both the same {dim}.")
