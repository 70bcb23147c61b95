"""block-dense: its products, the closed form for each block of inputs, refusals, runtimes."""

from __future__ import annotations

from pathlib import Path

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
from compiler.passes.linear.block_dense import BlockDense


def test_the_graph_before_and_after() -> None:
    after, result = grafted(BlockDense(layers="first"), two_layers())
    assert products(after) == [(2, 6)] * 4 + [(36, 8)] + [(24, 36)]
    assert result.outcomes[0].note.startswith("1 x 4 blocks of rank 2, 39% of the numbers, error ")


def test_plain_is_the_best_rank_of_every_block_of_inputs() -> None:
    program = two_layers()
    after, _ = grafted(BlockDense(method="plain", layers="second"), program)
    weights, weight = after.weights(), program.weight("second.weight").detach()
    second = weights["second.block_dense.second_factor.0"]
    for block in range(4):
        u, s, v = torch.linalg.svd(weight[:, 9 * block : 9 * block + 9])
        first = weights[f"second.block_dense.first_factor.{block}"]
        rank = len(first)
        found = second[:, block * rank : (block + 1) * rank] @ first
        torch.testing.assert_close(found, u[:, :rank] * s[:rank] @ v[:rank], rtol=0, atol=1e-5)


def test_weighing_by_inputs_leaves_less_error() -> None:
    program = two_layers()
    whitened, plain = (error(grafted(BlockDense(method=one), program)[0], program) for one in ("whitened", "plain"))
    assert whitened < 0.7 * plain


def test_what_is_refused() -> None:
    assert_refuses_unusable_weights(BlockDense(blocks=2))
    assert refusals(BlockDense(ratio=0.1), two_layers())["first"].startswith("there are too few numbers for blocks")
    after, _ = grafted(BlockDense(), two_layers())
    assert set(refusals(BlockDense(), after).values()) == {"its weight is a factor of a structured layer already"}
    with pytest.raises(CompilerError, match="blocks=20 is not from 2 to 16"):
        build(BlockDense, {"blocks": "20"})


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_models_in_onnx_runtime(model: str, tmp_path: Path) -> None:
    assert_runs_in_onnx_runtime(BlockDense(layers="0"), model, tmp_path)
