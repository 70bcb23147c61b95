"""Structured linear layers in ONNX Runtime: which formulation of each is fastest, and what it gains over dense.

    python benchmarks/structured_layers.py [--rounds 9] [--sizes 576x1536 ...]

Each layer is lowered by the product's own backend and called in turn with all others at 1, 128 and 1,024 tokens, by one
thread. A figure is the median over rounds of dense seconds over its own of the same round. Structures have 75, 50 and
25 % of the dense layer's FLOPs; those of block-shuffle are what its blocks say, and it is there that formulations are
compared (Monarch matrices with as many blocks are formulated alike):

    blocks    a product a block, all joined and transposed once in between (ships for few blocks, and for uneven ones)
    batched   one batched product a factor, blocks first (ships from 8 even blocks on)
    slices    a product a block, slices joined by each of the blocks that read them
    einsum    one einsum a factor, written as such

The table goes to the terminal and to benchmarks/results/, beside those of other machines; a size that is measured again
replaces itself there.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from minilm_int8 import processor
from results import records_by_machine, write_by_machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.evidence.trial_lowering import lowered_on_trial
from compiler.evidence.turns import alternating_seconds
from compiler.frontends.torch_export import capture
from compiler.structured.modules import StructuredLinear
from compiler.structured.projection import Factors
from compiler.structured.structure import Kind, Structure, shuffled, structure_of
from compiler.target import Target

RESULTS = Path(__file__).resolve().parent / "results"
TOKENS = (1, 128, 1024)
SIZES = ("576x1536", "1536x576", "2048x8192")
"""Inputs by outputs: the feed-forward layers of SmolLM2-135M, and a layer of a larger model."""
RATIOS = (0.75, 0.5, 0.25)
KINDS: tuple[tuple[Kind, int], ...] = (("low-rank", 1), ("block-dense", 4), ("monarch", 4), ("monarch", 8))
BLOCKS = (2, 4, 8, 16)
ABOUT = (
    "Speed over the dense layer (milliseconds, thousand million FLOPs a second) in float32, all layers in turn; FLOPs "
    "as a part of its own. Block-diagonal factors ship as `blocks`, from 8 even blocks on as `batched`."
)


def main() -> None:
    """Lower, measure, show, write."""
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = _arguments()
    console = Console()
    machine = {"processor": processor(), "threads": 1, "python": platform.python_version()}
    file = RESULTS / "structured_layers.json"
    records, record = records_by_machine(file, {"machine": machine, "onnxruntime": onnxruntime.__version__})
    sizes = record.setdefault("layers", {})
    for size in arguments.sizes:
        in_features, out_features = map(int, size.split("x"))
        layers = _layers(in_features, out_features)
        modules = {name: module for name, (module, _) in layers.items()}
        seconds = _timed(modules, in_features, arguments.rounds)
        figures = {
            name: {
                "flops": round(share, 3),
                "gigaflops": {
                    str(tokens): round(
                        2e-9 * share * tokens * in_features * out_features / statistics.median(seconds[tokens][name]), 1
                    )
                    for tokens in TOKENS
                },
                "milliseconds": {
                    str(tokens): round(1e3 * statistics.median(seconds[tokens][name]), 4) for tokens in TOKENS
                },
                "speedup": {str(tokens): round(_gain(seconds[tokens], name), 2) for tokens in TOKENS},
            }
            for name, (_, share) in layers.items()
        }
        console.print(_table(size, figures))
        sizes[size] = figures
        write_by_machine(file, records, "Structured linear layers", ABOUT, _sections)


def _layers(in_features: int, out_features: int) -> dict[str, tuple[nn.Module, float]]:
    """Modules by name, with their part of the dense layer's FLOPs."""
    torch.manual_seed(0)
    weight = torch.randn(out_features, in_features) * in_features**-0.5
    layers: dict[str, tuple[nn.Module, float]] = {"dense": (_Dense(weight), 1.0)}

    def add(name: str, module: nn.Module, structure: Structure) -> None:
        layers[name] = module, structure.parameter_count / weight.numel()

    for ratio in RATIOS:
        for kind, blocks in KINDS:
            structure = structure_of(kind, out_features, in_features, blocks, ratio)
            name = kind if kind == "low-rank" else f"{kind} {blocks}"
            add(f"{name}, {ratio:.0%}", StructuredLinear(_drawn(structure), None, torch.float32), structure)
    for blocks in BLOCKS:
        structure = shuffled(out_features, in_features, blocks)
        factors = _drawn(structure)
        for name, batched in (("blocks", False), ("batched", True)):
            add(f"block-shuffle {blocks}, {name}", StructuredLinear(factors, None, torch.float32, batched), structure)
        for formulation in (Slices, Einsum):
            add(f"block-shuffle {blocks}, {formulation.__name__.lower()}", formulation(factors), structure)
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


def _timed(modules: dict[str, nn.Module], in_features: int, rounds: int) -> dict[int, dict[str, list[float]]]:
    """Seconds a call by tokens and name, one figure a round; all take turns."""
    generator = torch.Generator().manual_seed(0)
    inputs = {tokens: torch.randn(tokens, in_features, generator=generator) for tokens in TOKENS}
    with ExitStack() as trials:
        calls: dict[int, dict[str, Callable[[], Any]]] = {tokens: {} for tokens in TOKENS}
        for name, module in modules.items():
            dims = {"x": {0: "tokens"}}
            program = capture(module.eval(), {"x": inputs[128][:3]}, source=name, dynamic=dims, clone=False)
            lowered = trials.enter_context(lowered_on_trial(program, OnnxRuntime(), Target.parse("cpu")))
            for tokens, x in inputs.items():
                calls[tokens][name] = lowered.call((x,))
            (found,) = calls[128][name]().values()
            np.testing.assert_allclose(found, program.run(inputs[128])[0].numpy(), rtol=1e-3, atol=1e-4)
        return {tokens: alternating_seconds(calls[tokens], rounds) for tokens in TOKENS}


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
        [name, f"{one['flops']:.2f}", *(_cell(one, str(tokens)) for tokens in TOKENS)] for name, one in figures.items()
    ]


def _cell(one: dict[str, Any], tokens: str) -> str:
    return f"{one['speedup'][tokens]:.2f}x ({one['milliseconds'][tokens]:.3f} ms, {one['gigaflops'][tokens]:.0f})"


def _sections(record: dict[str, Any]) -> list[str]:
    lines = []
    for size, figures in record["layers"].items():
        lines += [
            "",
            f"### {size}",
            "",
            "| layer | FLOPs | 1 token | 128 tokens | 1,024 tokens |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in _rows(figures)]
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="INxOUT")
    return parser.parse_args()


if __name__ == "__main__":
    main()
