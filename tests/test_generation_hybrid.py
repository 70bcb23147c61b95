"""A small llama with a grafted layer, compiled with states, against the grafted model over whole sequences."""

from __future__ import annotations

from pathlib import Path

import pytest
from decoding_checks import assert_decodes_greedily, passed, saved_llama

from compiler.compile_model import compile_model
from compiler.frontends import LoadOptions, load_model
from compiler.recipe import Recipe, parse_passes
from compiler.registry import Registry
from compiler.runtime.verify import verify

VOCABULARY = 64
GRAFT = "linear-attention:kind=gated-delta:window=8:sinks=2:layers=0"


@pytest.mark.slow
def test_greedy_tokens_are_those_of_the_grafted_model(tmp_path: Path) -> None:
    model = saved_llama(tmp_path / "model", VOCABULARY)
    compile_model(Recipe(model, parse_passes(f"{GRAFT},make-incremental")), tmp_path / "out")
    assert verify(tmp_path / "out").passed
    frontends = Registry(entry_points=False).frontends().values()
    grafted = passed(load_model(model, LoadOptions(), frontends), f"canonicalize,fuse,{GRAFT}")
    assert_decodes_greedily(tmp_path / "out", grafted, VOCABULARY)
