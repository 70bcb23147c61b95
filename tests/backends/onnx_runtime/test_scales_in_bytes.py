"""Scales in a byte each give what the same scales in float32 give, in joined products, tables and between codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from lowered_program import LoweredProgram, captured
from rewrite_checks import context_of
from torch import nn

from compiler.backends.onnx_runtime import graph_passes
from compiler.backends.onnx_runtime.graph_passes.scales_in_bytes import store_scales_in_bytes
from compiler.grafting import apply_graft
from compiler.passes.quantize import Quantize
from compiler.program import Program

WIDTH, VOCABULARY, PARTS = 96, 64, 3


class Attentive(nn.Module):
    """Three products of one input, which become one, and a table that is the head too or not."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(PARTS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        a, b, c = (part(x) for part in self.parts)
        logits: torch.Tensor = self.head(x + a * torch.sigmoid(b) + c)
        return logits


def on_a_grid(module: Attentive) -> Attentive:
    """Its layers as out of a Q4_1 file: blocks of 32 with a step and a minimum in float16."""
    for part in module.parts:
        assert isinstance(part, nn.Linear)
        blocks = part.weight.data.unflatten(1, (-1, 32))
        lowest, highest = blocks.amin(-1, keepdim=True).half().float(), blocks.amax(-1, keepdim=True)
        step = ((highest - lowest) / 15).half().float()
        codes = ((blocks - lowest) / step).round().clamp(0, 15)
        codes[..., 0], codes[..., 1] = 0, 15
        part.weight.data = (codes * step + lowest).flatten(1)
    return module


IDS = torch.arange(21).reshape(3, 7)


def quantized(module: nn.Module, **options: Any) -> Program:
    program = captured(module, ids=IDS)
    graft = Quantize(activations="none", rounding="nearest", embeddings=4, scale_bits=8, **options)
    after, result = apply_graft(graft, program, (), context_of(program))
    assert len(result.changed) == PARTS + 2
    return after


def stored(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Initializers by name."""
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(folder / "model.onnx").graph.initializer}


def both(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LoweredProgram, LoweredProgram]:
    """With scales in bytes, and in float32."""
    in_bytes = LoweredProgram(program, folder / "bytes")
    others = tuple(one for one in graph_passes.GRAPH_PASSES if one is not store_scales_in_bytes)
    monkeypatch.setattr(graph_passes, "GRAPH_PASSES", others)
    return in_bytes, LoweredProgram(program, folder / "floats")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_same_numbers_from_fewer_bytes(
    bits: int, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = quantized(Attentive(tied=tied), bits=bits, group=32, keep_grid=False)
    ours, theirs = both(program, tmp_path, monkeypatch)
    np.testing.assert_array_equal(ours.run(IDS)[0], theirs.run(IDS)[0])
    codes = {name: one for name, one in stored(ours.folder).items() if name.endswith(".codes")}
    (joined,) = [one for name, one in codes.items() if "packed" in name]
    assert joined.dtype == (np.int8 if bits == 8 else np.uint8), "scales beside zero points are above 0"
    assert sum(len(one) for one in codes.values()) == PARTS * WIDTH + (1 if tied else 2) * VOCABULARY
    assert not [n for n, one in stored(ours.folder).items() if one.dtype == np.float32 and one.ndim == 2]
    assert "Cast" not in ours.lowered.kernels, "scales are computed when the file is opened"
    assert ours.largest_error(IDS) < 0.05 * float(program.run(IDS)[0].std())


def test_minima_of_a_grid_are_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = quantized(on_a_grid(Attentive(tied=True)), bits=4)
    ours, theirs = both(program, tmp_path, monkeypatch)
    np.testing.assert_array_equal(ours.run(IDS)[0], theirs.run(IDS)[0])
    minima = [one for name, one in stored(ours.folder).items() if name.endswith(".minima.codes")]
    assert sum(len(one) for one in minima) == PARTS * WIDTH
    assert {one.dtype for one in minima} == {np.dtype(np.uint8)}, "all minima are below 0"
    assert ours.largest_error(IDS) < 0.05 * float(program.run(IDS)[0].std())
