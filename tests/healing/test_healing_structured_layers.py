"""Healing structured layers: the loss falls, and what is stored afterwards is plain factors again."""

from __future__ import annotations

from pathlib import Path

import pytest
from healing_models import LARGE_STEPS, healing_context, tiny_program
from structured_checks import products

from compiler.passes.feed_forward.structured_feed_forward import StructuredFeedForward
from compiler.passes.linear.low_rank import LowRank
from compiler.passes.linear.low_rank_plus_quantized import LowRankPlusQuantized
from compiler.pipeline import PassRecord, Pipeline
from compiler.rewriting import Graft

STEP = 0.1
"""Seconds that the clock goes on by when it is read."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "graft",
    [
        LowRank(layers="*.up+*.down"),
        StructuredFeedForward(kind="monarch", blocks=2),
        LowRankPlusQuantized(bits=2, weight_rank=2, group=16, layers="*.up+*.down"),
    ],
    ids=lambda graft: graft.name,
)
def test_healing_lowers_the_loss(graft: Graft, tmp_path: Path) -> None:
    program = tiny_program()
    after, _, records = Pipeline([graft], healing_context(tmp_path, step=STEP, rate=LARGE_STEPS)).run(program)
    healing = records[0].result.healing
    assert healing is not None
    assert healing.end < 0.85 * healing.start
    assert all(site.after < site.before for site in healing.sites if site.kept)
    assert bool(healing.sites) == (graft.name != "low-rank"), "what is nearest by its inputs has nothing to learn alone"
    unhealed, _, before = Pipeline([graft], healing_context(tmp_path / "none", minutes=1e-9)).run(program)
    assert products(after) == products(unhealed), "nothing of the training is left in the graph"
    assert divergence(records[0]) < divergence(before[0])


def divergence(record: PassRecord) -> float:
    """Of the outputs, on data that healing has not seen."""
    fidelity = record.evidence.fidelity
    assert fidelity is not None
    assert fidelity.kl_divergence is not None
    return fidelity.kl_divergence
