"""Structured linear layers in ONNX Runtime: which formulation of each is fastest, and what it gains over dense.

    python benchmarks/structured_layers.py [--rounds 15] [--sizes 576x1536 ...]

Each layer is lowered by the product's own backend and called in turn with all others at 1, 128 and 1,024 tokens. A
figure is the median over rounds of dense seconds over its own of the same round, in seconds of the calling thread,
which with one thread does all the work: what else the machine does counts little. Formulations of Monarch:

    blocks    a product a block, all joined and transposed once in between (ships for few blocks, and for uneven ones)
    batched   one batched product a factor, blocks first (ships from 8 even blocks on)
    slices    a product a block, slices joined by each of the blocks that read them
    einsum    one einsum a factor, written as such

The table goes to the terminal and to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from minilm_int8 import processor
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.frontends.torch_export import capture
from compiler.structured.modules import StructuredLinear
from compiler.structured.projection import Factors
from compiler.structured.structure import Structure, shuffled
from compiler.target import Target

RESULTS = Path(__file__).resolve().parent / "results"
TOKENS = (1, 128, 1024)
SIZES = ("576x1536", "1536x576", "2048x8192")
"""Inputs by outputs: the feed-forward layers of SmolLM2-135M, and a layer of a larger model."""
BLOCKS = (2, 4, 8, 16)
LEAST_SECONDS = 0.004
"""A turn calls so often that it lasts this long: a clock and a scheduler say little of one short call."""


def main() -> None:
    """Lower, measure, show, write."""
    arguments = _arguments()
    console = Console()
    figures = {}
    for size in arguments.sizes:
        in_features, out_features = map(int, size.split("x"))
        with tempfile.TemporaryDirectory(prefix="regraft-structured-") as scratch:
            sessions, flops = {}, {}
            for name, (module, share) in _layers(in_features, out_features).items():
                sessions[name] = _session(module, in_features, Path(scratch) / name)
                flops[name] = share
            seconds = {tokens: _timed(sessions, in_features, tokens, arguments.rounds) for tokens in TOKENS}
        figures[size] = {
            name: {
                "flops": round(flops[name], 3),
                "milliseconds": {tokens: round(1e3 * statistics.median(seconds[tokens][name]), 4) for tokens in TOKENS},
                "speedup": {tokens: round(_gain(seconds[tokens], name), 2) for tokens in TOKENS},
            }
            for name in sessions
        }
        console.print(_table(size, figures[size]))
    machine = {"processor": processor(), "threads": 1, "python": platform.python_version()}
    record = {"machine": machine, "onnxruntime": onnxruntime.__version__, "layers": figures}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "structured_layers.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "structured_layers.md").write_text(_page(record), encoding="utf-8")


def _layers(in_features: int, out_features: int) -> dict[str, tuple[nn.Module, float]]:
    """Modules by name, with their part of the dense layer's FLOPs."""
    torch.manual_seed(0)
    weight = torch.randn(out_features, in_features) * in_features**-0.5
    layers: dict[str, tuple[nn.Module, float]] = {"dense": (_Dense(weight), 1.0)}

    def add(name: str, module: nn.Module, structure: Structure) -> None:
        layers[name] = module, structure.parameter_count / weight.numel()

    for ratio in (0.75, 0.5, 0.25):
        for name, in_blocks in (("low-rank", 1), ("block-dense 4", 4)):
            structure = Structure.of(out_features, in_features, 1, in_blocks, rank=1).at_ratio(ratio)
            add(f"{name}, {ratio:.0%}", StructuredLinear(_drawn(structure), None, torch.float32), structure)
    for blocks in BLOCKS:
        structure = shuffled(out_features, in_features, blocks)
        factors = _drawn(structure)
        for name, batched in (("blocks", False), ("batched", True)):
            add(f"monarch {blocks}, {name}", StructuredLinear(factors, None, torch.float32, batched), structure)
        for formulation in (Slices, Einsum):
            add(f"monarch {blocks}, {formulation.__name__.lower()}", formulation(factors), structure)
    return layers


def _drawn(structure: Structure) -> Factors:
    """Random factors: what is timed does not depend on them."""
    rank = structure.rank
    up = tuple(tuple(torch.randn(size, rank) * 0.05 for _ in structure.in_sizes) for size in structure.out_sizes)
    down = tuple(tuple(torch.randn(rank, size) * 0.05 for size in structure.in_sizes) for _ in structure.out_sizes)
    return Factors(structure, up, down)


class _Dense(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """x [tokens, in] to [tokens, out]."""
        return nn.functional.linear(x, self.weight)


class Slices(nn.Module):
    """A product a block, and no transposition: each block of outputs joins the slices that it reads."""

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.blocks = len(factors.structure.in_sizes)
        self.first, self.second = (
            nn.ParameterList([nn.Parameter(one) for one in part]) for part in (factors.first(), factors.second())
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [tokens, in] to [tokens, out]."""
        parts = zip(x.chunk(self.blocks, -1), self.first, strict=True)
        slices = [nn.functional.linear(one, weight).chunk(self.blocks, -1) for one, weight in parts]
        read = [torch.cat([one[block] for one in slices], -1) for block in range(self.blocks)]
        return torch.cat([nn.functional.linear(one, w) for one, w in zip(read, self.second, strict=True)], -1)


class Einsum(nn.Module):
    """One einsum a factor: first [blocks, inner, in_i], second [blocks, out_j, inner]."""

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.stack(factors.first()))
        self.second = nn.Parameter(torch.stack(factors.second()))

    def forward(self, x: Tensor) -> Tensor:
        """x [tokens, in] to [tokens, out]."""
        tokens, blocks = x.shape[0], len(self.first)
        hidden = torch.einsum("tip,iqp->tiq", x.reshape(tokens, blocks, -1), self.first)
        dealt = hidden.reshape(tokens, blocks, blocks, -1).transpose(1, 2).reshape(tokens, blocks, -1)
        return torch.einsum("tjq,jsq->tjs", dealt, self.second).reshape(tokens, -1)


def _session(module: nn.Module, in_features: int, folder: Path) -> onnxruntime.InferenceSession:
    folder.mkdir()
    program = capture(module.eval(), {"x": torch.randn(3, in_features)}, source="layer", dynamic={"x": {0: "tokens"}})
    lowered = OnnxRuntime().lower(program, Target.parse("cpu"), folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / lowered.entry), options)
    x = torch.randn(5, in_features)
    (found,) = session.run(None, {"x": x.numpy()})
    (wanted,) = program.run(x)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4)
    return session


def _timed(sessions: dict[str, Any], in_features: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a call by name, one figure a round; all take turns."""
    inputs = {"x": np.random.default_rng(0).standard_normal((tokens, in_features), np.float32)}
    calls = {}
    for name, session in sessions.items():
        session.run(None, inputs)
        started = time.thread_time()
        session.run(None, inputs)
        calls[name] = max(1, int(LEAST_SECONDS / max(time.thread_time() - started, 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            started = time.thread_time()
            for _ in range(calls[name]):
                session.run(None, inputs)
            seconds[name].append((time.thread_time() - started) / calls[name])
    return seconds


def _gain(seconds: dict[str, list[float]], name: str) -> float:
    pairs = zip(seconds["dense"], seconds[name], strict=True)
    return statistics.median(dense / own for dense, own in pairs)


def _table(size: str, figures: dict[str, Any]) -> Table:
    table = Table("layer", "FLOPs", *(f"{tokens} tokens" for tokens in TOKENS), title=size)
    for row in _rows(figures):
        table.add_row(*row)
    return table


def _rows(figures: dict[str, Any]) -> list[list[str]]:
    return [
        [name, f"{one['flops']:.2f}"]
        + [f"{one['speedup'][tokens]:.2f}x ({one['milliseconds'][tokens]:.3f} ms)" for tokens in TOKENS]
        for name, one in figures.items()
    ]


def _page(record: dict[str, Any]) -> str:
    machine = record["machine"]
    lines = [
        "# Structured linear layers",
        "",
        f"{machine['processor']}; {machine['threads']} thread; ONNX Runtime {record['onnxruntime']}, float32. Speed "
        "over the dense layer (milliseconds of the calling thread), all layers in turn; FLOPs as a part of the dense "
        "layer's. Monarch matrices ship as `blocks`, from 8 even blocks on as `batched`.",
    ]
    for size, figures in record["layers"].items():
        lines += [
            "",
            f"## {size}",
            "",
            "| layer | FLOPs | 1 token | 128 tokens | 1,024 tokens |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in _rows(figures)]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="INxOUT")
    return parser.parse_args()


if __name__ == "__main__":
    main()
