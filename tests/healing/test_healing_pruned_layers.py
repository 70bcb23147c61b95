"""Healing pruned layers: zeros stay zeros, or fade in; smaller blocks learn in all that is left of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from healing_models import LARGE_STEPS, healing_context, tiny_program
from structured_checks import products

import compiler.passes.pruning.prune as prune
from compiler.passes.pruning.prune import Prune
from compiler.passes.pruning.prune_heads import PruneHeads
from compiler.passes.pruning.prune_neurons import PruneNeurons
from compiler.pipeline import Pipeline
from compiler.rewriting import Graft

STEP = 0.1
"""Seconds that the clock goes on by when it is read."""


@pytest.mark.slow
@pytest.mark.parametrize("fading", [False, True])
def test_healing_keeps_the_zeros_and_lowers_the_loss(
    fading: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "SMALLEST_SITE", 1)
    graft = Prune(pattern="1-of-4", method="wanda", fading=fading, layers="*.up+*.down")
    program = tiny_program()
    after, _, records = Pipeline([graft], healing_context(tmp_path, step=STEP, rate=LARGE_STEPS)).run(program)
    healing = records[0].result.healing
    assert healing is not None
    assert healing.end < 0.9 * healing.start
    layers = after.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    weights = [after.weight(node.args[1]).detach() for node in layers]
    zeros = [one for one in weights if bool((one == 0).any())]
    assert len(zeros) == 4
    assert all(bool(((one.reshape(len(one), -1, 4) != 0).sum(-1) <= 1).all()) for one in zeros)


@pytest.mark.slow
@pytest.mark.parametrize("graft", [PruneNeurons(ratio=0.5), PruneHeads(ratio=0.5)], ids=lambda graft: graft.name)
def test_healing_smaller_blocks_lowers_the_loss(graft: Graft, tmp_path: Path) -> None:
    program = tiny_program()
    after, _, records = Pipeline([graft], healing_context(tmp_path, step=STEP, rate=LARGE_STEPS)).run(program)
    healing = records[0].result.healing
    assert healing is not None
    assert healing.end < 0.9 * healing.start
    assert min(width for shape in products(after) for width in shape) == (16 if graft.name == "prune-neurons" else 8)
