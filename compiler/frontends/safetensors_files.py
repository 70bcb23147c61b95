"""The weight files of a checkpoint folder: found, and checked to be complete, before anything is built from them."""

from __future__ import annotations

import json
from pathlib import Path

from compiler.errors import CompilerError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin", "pytorch_model.pt")


def has_safetensors(folder: Path) -> bool:
    """Whether the folder's weights are in safetensors."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def check_safetensors(doing: str, folder: Path) -> None:
    """Raise CompilerError when a weight file is missing, truncated or damaged."""
    for path in weight_files(doing, folder):
        _check_complete(doing, path)


def found_pickle(folder: Path) -> str | None:
    """The name of a pickled weight file in the folder, or None."""
    return next((name for name in PICKLES if (folder / name).is_file()), None)


def weight_files(doing: str, folder: Path) -> list[Path]:
    """The folder's weight files. Raises CompilerError when one that the index names is missing."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CompilerError(doing, f"{INDEX} is damaged ({error})", "Fetch the file again.") from error
    for name in names:
        if not (folder / name).is_file() or Path(name).name != name:
            raise CompilerError(doing, f"the weight file {name!r} is missing", f"{INDEX} names it: fetch it again.")
    return [folder / name for name in names]


def _check_complete(doing: str, path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        problem = f"{path.name} is truncated or damaged ({error})"
        raise CompilerError(doing, problem, f"It has {path.stat().st_size:,} bytes: fetch it again.") from error
