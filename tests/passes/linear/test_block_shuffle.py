"""block-shuffle: its width, the shuffle as the paper writes it, the gentler rung, refusals, runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rewrite_checks import captured, context_of
from structured_checks import (
    assert_refuses_unusable_weights,
    assert_runs_in_onnx_runtime,
    grafted,
    products,
    refusals,
    two_layers,
)
from torch import nn

from compiler.errors import CompilerError
from compiler.options import build
from compiler.passes.linear.block_shuffle import BlockShuffle
from compiler.rewriting import Replacement
from compiler.sites import Site, find_sites


def test_it_is_as_wide_inside_as_the_narrower_side() -> None:
    after, _ = grafted(BlockShuffle(blocks=2), two_layers())
    assert products(after) == [(12, 12)] * 2 + [(18, 12)] * 2 + [(12, 18)] * 2 + [(12, 12)] * 2
    after, _ = grafted(BlockShuffle(blocks=4), two_layers())
    assert products(after)[:8] == [(4, 6)] * 4 + [(9, 4)] * 4


def test_a_layer_that_is_one_comes_back() -> None:
    """f^-1(U f(V x)) with f the transposition of [blocks, width] to [width, blocks], in loops."""
    blocks, inner, inputs, outputs = 3, 9, 12, 15
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(blocks, inner // blocks, inputs // blocks, generator=generator)
    second = torch.randn(blocks, outputs // blocks, inner // blocks, generator=generator)
    weight = torch.zeros(outputs, inputs)
    for column in range(inputs):
        source, place = divmod(column, inputs // blocks)
        between = torch.zeros(inner)
        between[source * 3 : source * 3 + 3] = first[source, :, place]
        for j in range(blocks):
            shuffled = between[j::blocks]  # number t goes to block t mod blocks
            weight[j * 5 : j * 5 + 5, column] = second[j] @ shuffled
    module = nn.Linear(inputs, outputs, bias=False)
    module.weight.data = weight
    program = captured(nn.Sequential(module).eval(), input=torch.randn(5, inputs))
    after, result = grafted(BlockShuffle(blocks=blocks, method="plain"), program)
    assert result.changed
    x = torch.randn(4, inputs)
    torch.testing.assert_close(after.run(x)[0], x @ weight.T, rtol=1e-4, atol=1e-5)


def test_the_budget_tries_half_as_many_blocks() -> None:
    program = two_layers()
    site = next(one for one in find_sites(program, ("linear",)) if isinstance(one, Site))
    proposal = BlockShuffle(blocks=4).stand_in
    context = context_of(program)
    first = BlockShuffle(blocks=4).propose(site, program, context)
    assert isinstance(first, Replacement)
    assert first.gentler is None, "without a budget nothing is kept for it"
    from compiler.structured.linear_layers import Layers

    rung = proposal(Layers((site,), program, context, "whitened").layer(site))
    assert isinstance(rung, Replacement)
    assert rung.gentler is not None
    gentler = rung.gentler()
    assert isinstance(gentler, Replacement)
    assert gentler.note.startswith("2 x 2 blocks of rank 6, 83% of the numbers")
    assert gentler.gentler is None


def test_what_is_refused() -> None:
    assert_refuses_unusable_weights(BlockShuffle(blocks=2))
    assert refusals(BlockShuffle(blocks=8), two_layers())["first"].startswith("there are too few numbers for blocks")
    uneven = refusals(BlockShuffle(blocks=5, batched=True), captured_uneven())
    assert list(uneven.values()) == ["batched=true: its blocks are not all of one size"]
    with pytest.raises(CompilerError, match="blocks=1 is not from 2 to 16"):
        build(BlockShuffle, {"blocks": "1"})


def captured_uneven():
    return captured(nn.Sequential(nn.Linear(53, 64)).eval(), input=torch.randn(5, 53))


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True])
def test_models_in_onnx_runtime(batched: bool, tmp_path: Path) -> None:
    assert_runs_in_onnx_runtime(BlockShuffle(batched=batched, layers="0"), "bert", tmp_path)
