"""monarch: its products and their permutation, the closed form block by block, both forms, refusals, runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from structured_checks import (
    assert_refuses_unusable_weights,
    assert_runs_in_onnx_runtime,
    error,
    grafted,
    products,
    refusals,
    two_layers,
)

from compiler.errors import CompilerError
from compiler.options import build
from compiler.passes.linear.low_rank import LowRank
from compiler.passes.linear.monarch import Monarch


def test_the_graph_before_and_after() -> None:
    after, result = grafted(Monarch(blocks=3, layers="first"), two_layers())
    assert result.changed == ("first",)
    assert products(after) == [(6, 8)] * 3 + [(12, 6)] * 3 + [(24, 36)]
    assert result.outcomes[0].note.startswith("3 x 3 blocks of rank 2, 42% of the numbers, error ")


def test_plain_is_the_best_rank_of_every_block() -> None:
    program = two_layers()
    after, _ = grafted(Monarch(method="plain", blocks=2), program)
    x = torch.eye(24)
    found = (after.run(torch.zeros(1, 24))[0], after.run(x)[0])
    weight = program.weight("first.weight").detach()
    expected = torch.zeros(36, 24)
    for rows in (slice(0, 18), slice(18, 36)):
        for columns in (slice(0, 12), slice(12, 24)):
            u, s, v = torch.linalg.svd(weight[rows, columns])
            expected[rows, columns] = u[:, :3] * s[:3] @ v[:3]
    only, _ = grafted(Monarch(method="plain", blocks=2, layers="first"), program)
    bias, second = program.weight("first.bias").detach(), program.weight("second.weight").detach()
    torch.testing.assert_close(only.run(x)[0], torch.tanh(x @ expected.T + bias) @ second.T, rtol=0, atol=1e-5)
    assert all(torch.isfinite(one).all() for one in found)


def test_weighing_by_inputs_leaves_less_error() -> None:
    program = two_layers()
    whitened, plain = (error(grafted(Monarch(method=method), program)[0], program) for method in ("whitened", "plain"))
    assert whitened < 0.7 * plain


@pytest.mark.parametrize("blocks", [2, 4])
def test_batched_products_give_the_same(blocks: int) -> None:
    program = two_layers()
    split, batched = (grafted(Monarch(blocks=blocks, batched=form), program)[0] for form in (False, True))
    assert products(batched) == []
    x = torch.randn(7, 24)
    torch.testing.assert_close(batched.run(x)[0], split.run(x)[0], rtol=1e-5, atol=1e-6)


def test_blocks_of_two_sizes() -> None:
    program = two_layers()
    after, result = grafted(Monarch(blocks=5, ratio=0.6), program)
    assert len(result.changed) == 2
    assert products(after)[:10] == [(5, 5)] * 4 + [(5, 4)] + [(8, 5)] + [(7, 5)] * 4
    assert 0 < error(after, program) < 1
    refused = refusals(Monarch(blocks=5, ratio=0.6, batched=True), program)
    assert refused["first"] == "batched=true: its blocks are not all of one size"


def test_what_is_refused() -> None:
    assert_refuses_unusable_weights(Monarch(blocks=2))
    small = refusals(Monarch(blocks=16), two_layers())
    assert small["first"] == "there are too few numbers for blocks of rank 1 in a weight of 36 x 24"
    after, _ = grafted(LowRank(layers="first"), two_layers())
    assert list(refusals(Monarch(), after).values()) == ["its weight is a factor of a structured layer already"] * 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"blocks": "1"}, "blocks=1 is not from 2 to 16"),
        ({"blocks": "17"}, "blocks=17 is not from 2 to 16"),
        ({"ratio": "0"}, "ratio=0 is not between 0 and 1"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(CompilerError, match=problem):
        build(Monarch, options)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "batched"), [("llama", False), ("bert", True), ("vit", False), ("vit", True)])
def test_models_in_onnx_runtime(model: str, batched: bool, tmp_path: Path) -> None:
    result = assert_runs_in_onnx_runtime(Monarch(batched=batched, layers="0"), model, tmp_path)
    assert len(result.changed) >= 6
