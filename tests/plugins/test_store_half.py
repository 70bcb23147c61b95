"""store-half: weights in 16 bits, products as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compiler.evidence.cost import weight_bytes
from compiler.evidence.data import load_dataset
from compiler.frontends.torch_export import capture
from compiler.pipeline import Pipeline
from compiler.plugins.store_half import StoreHalf
from compiler.program import Program
from compiler.rewriting import PassContext, PassResult
from compiler.target import Target


class Bag(nn.Module):
    """Token ids [batch, tokens] to scores [batch, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.scores = nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.scores(self.table(ids).mean(1))


def bag(change: float | None = None) -> Program:
    torch.manual_seed(0)
    model = Bag().eval()
    if change is not None:
        model.scores.weight.data[0, 0] = change
    return capture(model, {"ids": torch.arange(12).reshape(2, 6)}, source="bag")


def grafted(program: Program, graft: StoreHalf) -> tuple[Program, PassResult]:
    context = PassContext(Target("cpu"), load_dataset(None, program))
    finished, _, records = Pipeline([graft], context).run(program)
    return finished, records[0].result


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_computes_with_the_rounded_weights(dtype: str) -> None:
    program = bag()
    finished, result = grafted(program, StoreHalf(dtype=dtype))
    table, weight, bias = (program.weight(name) for name in ("table.weight", "scores.weight", "scores.bias"))
    half = getattr(torch, dtype)
    ids = torch.tensor([[1, 2, 3]])
    expected = table.to(half).float()[ids].mean(1) @ weight.to(half).float().T + bias
    torch.testing.assert_close(finished.run(ids)[0], expected.detach())
    assert [outcome.state for outcome in result.outcomes] == ["grafted", "grafted"]
    assert weight_bytes(finished) == 2 * (50 * 16 + 4 * 16) + 4 * 4


def test_it_refuses_what_float16_cannot_hold_and_bfloat16_can() -> None:
    _, result = grafted(bag(change=1e6), StoreHalf())
    assert [refusal.reason for refusal in result.refusals] == ["a weight is beyond what float16 can hold"]
    _, result = grafted(bag(change=1e6), StoreHalf(dtype="bfloat16"))
    assert result.refusals == ()


def test_it_refuses_what_is_half_already() -> None:
    once, _ = grafted(bag(), StoreHalf())
    text = once.text()
    twice, result = grafted(once, StoreHalf())
    assert twice.text() == text
    assert result.changed == ()
