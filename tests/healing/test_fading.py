"""What fades out while stand-ins learn: its course against the formula, guided healing, judgements meanwhile."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from healing_models import LARGE_STEPS, healing_context, ticking, tiny_program
from rewrite_checks import context_of
from torch import Tensor, nn

from compiler.grafting import GraftedSite, Workbench
from compiler.healing.descent import Descent, Settings
from compiler.healing.fading import FADED_AT, Fading, Guide, fade_all, fades
from compiler.healing.interruption import Interruption
from compiler.healing.wall_time import WallTime
from compiler.passes.feed_forward.structured_feed_forward import StructuredFeedForward
from compiler.pipeline import Pipeline
from compiler.rewriting import Replacement
from compiler.sites import Site, find_sites


class Remembers(Fading):
    """What it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def fade(self, done: float) -> None:
        """Note it."""
        self.told.append(done)


@pytest.mark.parametrize("done", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_guide_mixes_by_half_a_cosine(done: float) -> None:
    generator = torch.Generator().manual_seed(0)
    original, stand_in = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    guide = Guide()
    assert torch.equal(guide(original, stand_in), stand_in), "it starts as what ships"
    guide.fade(done)
    found = guide(original, stand_in)
    share = (1 + math.cos(math.pi * done)) / 2
    for row in range(2):
        for column in range(3):
            expected = share * float(original[row, column]) + (1 - share) * float(stand_in[row, column])
            assert float(found[row, column]) == pytest.approx(expected, abs=1e-15)


def test_all_that_fades_hears_how_far_half_of_the_time_is() -> None:
    inner = Remembers()
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(inner))
    assert fades(module)
    assert not fades(module[0])
    for share in (0.0, FADED_AT / 2, FADED_AT, 1.0):
        fade_all(module, share)
    assert inner.told == [0.0, 0.5, 1.0, 1.0]


def test_originals_and_stand_ins_share_their_places() -> None:
    program = tiny_program()
    work, graft = program.copy(), StructuredFeedForward(blocks=2)
    sites = [one for one in find_sites(work, graft.site_kinds) if isinstance(one, Site)]
    proposals = [one for one in graft.propose_all(sites, work, context_of(program)) if isinstance(one, Replacement)]
    bench = Workbench(graft, work, [GraftedSite(site, [one]) for site, one in zip(sites, proposals, strict=True)])
    for index in range(len(sites)):
        bench.set_rung(index, 0)
    before = bench.trial()
    guided, after = bench.guided_trial(), bench.trial()
    assert after.text() == before.text(), "no guide is left behind"
    (original,), (stand_ins,) = program.run(*program.example_inputs), after.run(*program.example_inputs)
    for share, expected in ((0.0, original), (1.0, stand_ins)):
        fade_all(guided.graph_module, share)
        torch.testing.assert_close(guided.run(*program.example_inputs)[0], expected, rtol=0, atol=1e-6)
    fade_all(guided.graph_module, FADED_AT / 2)
    half = guided.run(*program.example_inputs)[0]
    assert (half - original).norm() < (stand_ins - original).norm()


@pytest.mark.slow
def test_guided_healing_lowers_the_loss_and_leaves_no_guide(tmp_path: Path) -> None:
    program, graft = tiny_program(), StructuredFeedForward(ratio=0.3)
    runs = {}
    for name, guided in (("guided", True), ("plain", False)):
        context = healing_context(tmp_path / name, step=0.1, guided=guided, rate=LARGE_STEPS)
        after, _, records = Pipeline([graft], context).run(program)
        runs[name] = after.text(), records[0].result.healing
    assert runs["guided"][0] == runs["plain"][0]
    healing = runs["guided"][1]
    assert healing is not None
    assert healing.end < 0.9 * healing.after_sites


def test_what_is_judged_while_something_fades_ends_nothing(tmp_path: Path) -> None:
    matrix = nn.Parameter(torch.ones(3, 3))

    def shares_trained(*, fades: bool) -> list[float]:
        shares: list[float] = []

        def gradient(step: int) -> tuple[float, int]:
            shares.append(descent.course.share_done)
            loss: Tensor = matrix.square().sum()
            loss.backward()
            return float(loss.detach()), 1

        def judge() -> float:
            return 2.0 + len(shares)

        folder = tmp_path / str(fades)
        folder.mkdir()
        wall = WallTime(1000.0, folder, ticking(0.1))
        descent = Descent({"matrix": matrix}, gradient, judge, Settings(60, "adamw", 0.05, fades=fades), wall)
        descent.run(Interruption())
        return shares

    assert sum(share > FADED_AT for share in shares_trained(fades=True)) > 100, "a second half was left to train in"
    assert len(shares_trained(fades=False)) < 450
