"""Healing structured layers: the loss falls, and what is stored afterwards is plain factors again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from healing_models import healing_context, tiny_program
from structured_checks import products

from compiler.passes.feed_forward.structured_feed_forward import StructuredFeedForward
from compiler.passes.linear.low_rank import LowRank
from compiler.passes.linear.low_rank_plus_quantized import LowRankPlusQuantized
from compiler.passes.linear.monarch import Monarch
from compiler.pipeline import Pipeline
from compiler.rewriting import Graft

STEP = 0.25
"""Seconds that the clock goes on by when it is read."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graft", "gain"),
    [
        (LowRank(layers="*.up+*.down"), 2.0),
        (Monarch(blocks=2, layers="*.up+*.down"), 2.0),
        (StructuredFeedForward(kind="block-dense", blocks=2), 2.0),
        (LowRankPlusQuantized(bits=2, rank=2, group=16, layers="*.up+*.down"), 1.3),
    ],
    ids=lambda one: one.name if isinstance(one, Graft) else "",
)
def test_healing_lowers_the_loss(graft: Graft, gain: float, tmp_path: Path) -> None:
    program = tiny_program()
    after, _, records = Pipeline([graft], healing_context(tmp_path, step=STEP)).run(program)
    healing = records[0].result.healing
    assert healing is not None
    assert healing.end < healing.start / gain
    assert all(site.kept and site.after < site.before for site in healing.sites)
    unhealed, _, _ = Pipeline([graft], healing_context(tmp_path / "none", minutes=1e-9)).run(program)
    assert products(after) == products(unhealed), "nothing of the training is left in the graph"
    evidence = records[0].evidence.fidelity
    assert evidence is not None
    assert evidence.kl_divergence is not None
    assert evidence.kl_divergence < healing.start
    assert all(torch.isfinite(one).all() for one in after.weights().values() if one.is_floating_point())
