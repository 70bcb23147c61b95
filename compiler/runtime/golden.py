"""Golden inputs and outputs: what an artifact must reproduce on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.runtime.tensor_file import read_tensors, write_tensors

Arrays = dict[str, np.ndarray[Any, Any]]

LARGEST_GOLDEN_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Golden:
    """By name: the inputs, the outputs of the Program in eager (`reference`), and those of the payload at build
    (`outputs`).

    `outputs` is empty when the machine that built the artifact could not run it.
    """

    inputs: Arrays
    reference: Arrays
    outputs: Arrays


def write_golden(path: Path, golden: Golden) -> None:
    """Write all three groups into one .npz, always with the same bytes."""
    groups = {"inputs": golden.inputs, "reference": golden.reference, "outputs": golden.outputs}
    write_tensors(
        path, {f"{group}/{name}": array for group, arrays in groups.items() for name, array in arrays.items()}
    )


def read_golden(path: Path) -> Golden:
    """Read what `write_golden` wrote. Raises CompilerError when the file is not of that kind."""
    groups: dict[str, Arrays] = {"inputs": {}, "reference": {}, "outputs": {}}
    for name, array in read_tensors(path, LARGEST_GOLDEN_BYTES).items():
        group, _, rest = name.partition("/")
        if group in groups:
            groups[group][rest] = array
    return Golden(**groups)
