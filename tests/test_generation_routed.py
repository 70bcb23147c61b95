"""A small llama with routers, compiled with states, against the routed model over whole sequences."""

from __future__ import annotations

from pathlib import Path

import pytest
from decoding_checks import assert_decodes_greedily, passed, saved_llama
from given_routers import GivenRouters, RegistryWithRouters
from rewrite_checks import context_of

from compiler.compile_model import compile_model
from compiler.frontends import LoadOptions, load_model
from compiler.grafting import apply_graft
from compiler.recipe import Recipe, parse_passes
from compiler.runtime.verify import verify

VOCABULARY = 64


@pytest.mark.slow
def test_greedy_tokens_are_those_of_the_routed_model(tmp_path: Path) -> None:
    """Routers choose differently for the rows of a decoder, and one row is shorter than what its router reads."""
    model = saved_llama(tmp_path / "model", VOCABULARY)
    registry = RegistryWithRouters(entry_points=False)
    recipe = Recipe(model, parse_passes("given-routers:window=8:sinks=2:context=20,make-incremental"))
    compile_model(recipe, tmp_path / "out", registry=registry)
    assert verify(tmp_path / "out").passed
    fused = passed(load_model(model, LoadOptions(), registry.frontends().values()), "canonicalize,fuse")
    routed, _ = apply_graft(GivenRouters(window=8, sinks=2, context=20), fused, (), context_of(fused))
    assert_decodes_greedily(tmp_path / "out", routed, VOCABULARY)
