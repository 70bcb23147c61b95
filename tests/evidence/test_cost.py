"""Costs counted by hand on a small model."""

from typing import Any

import pytest
import torch
from torch import nn

from compiler.evidence.cost import flops, peak_memory_bytes, weight_bytes
from compiler.evidence.data import load_dataset
from compiler.frontends.torch_export import capture
from compiler.pipeline import Pipeline
from compiler.registry import Registry
from compiler.rewriting import PassContext
from compiler.target import Target


def test_bytes_and_flops_are_those_counted_by_hand() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 6)
            self.head = nn.Linear(6, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(ids))

    program = capture(Tied(), {"ids": torch.zeros(2, 3, dtype=torch.long)}, source="tied")
    assert weight_bytes(program) == 10 * 6 * 4
    assert flops(program) == 2 * (2 * 3) * 6 * 10


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory_bytes()
    held = torch.ones(max(before // 4, 32 << 20))
    assert peak_memory_bytes() >= before
    assert peak_memory_bytes() > held.numel() * 4


@pytest.mark.parametrize("options", [{}, {"activations": "none"}, {"bits": 4}], ids=str)
def test_quantized_products_count_as_the_float_ones_they_stand_for(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(64, 128)).eval(), {"x": torch.randn(4, 64)}, source="linear")
    context = PassContext(Target("cpu"), load_dataset(None, program))
    quantize = Registry(entry_points=False).passes()["quantize"](**options)
    quantized, _, records = Pipeline([quantize], context).run(program)
    assert records[0].result.changed
    assert flops(quantized) == flops(program) == 2 * 4 * 64 * 128
