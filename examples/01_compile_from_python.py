"""Compile from Python and run what came out: python examples/01_compile_from_python.py [folder to write]

The same as: compile examples/02_your_own_model.py:digits --passes canonicalize,fuse,quantize --max-drop 0.02 -o FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from compiler.compile_model import compile_model
from compiler.recipe import Recipe, parse_passes
from compiler.runtime.session import Session

MODEL = Path(__file__).parent / "02_your_own_model.py"


def main(folder: Path) -> None:
    """Compile, say what it cost, run."""
    recipe = Recipe(model=f"{MODEL}:digits", passes=parse_passes("canonicalize,fuse,quantize"), max_drop=0.02)
    result = compile_model(recipe, folder)

    for record in result.records:
        fidelity = record.evidence.fidelity
        told = "" if fidelity is None else f", mean cosine {fidelity.mean_cosine:.5f}"
        print(f"{record.text}: {record.evidence.weight_bytes:,} bytes of weights{told}")

    # From here on neither torch nor the compiler is needed.
    outputs = Session.open(folder).run({"image": np.zeros((3, 1, 28, 28), np.float32)})
    print({name: array.shape for name, array in outputs.items()})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch) / "digits")
