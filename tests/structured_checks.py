"""Small Programs for structured layers, and what holds for all of their grafts: numbers, refusals, a second run."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
import zoo
from lowered_program import LoweredProgram
from rewrite_checks import captured, context_of, other_size
from torch import Tensor, nn

from compiler.grafting import apply_graft
from compiler.ops.quantized_linear import inputs_rounded
from compiler.passes.canonicalize import Canonicalize
from compiler.program import Program
from compiler.rewriting import Graft, PassContext, PassResult
from compiler.sites import Refusal, Site, find_sites

WIDTH, INNER = 24, 36


class Two(nn.Module):
    """Two layers with a bend between them; the second one has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 24] to the same."""
        return self.second(torch.tanh(self.first(x)))


def inputs(rows: int = 300) -> Tensor:
    """Rows whose features hang together and differ in size."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(rows, 8, generator=generator) @ torch.randn(8, WIDTH, generator=generator)
    return (mixed + 0.3 * torch.randn(rows, WIDTH, generator=generator)) * torch.linspace(0.2, 2, WIDTH)


@functools.cache
def _two() -> Program:
    torch.manual_seed(0)
    return captured(Two().eval(), x=inputs())


def two_layers() -> Program:
    """A Program of `Two` that a test may change."""
    return _two().copy()


def grafted(graft: Graft, program: Program, **context: Any) -> tuple[Program, PassResult]:
    """The Program with the graft in it, calibrated on its own examples."""
    return apply_graft(graft, program, (), dataclasses.replace(context_of(program), **context))


def error(found: Program, expected: Program) -> float:
    """Squared error of the outputs, as a part of their size."""
    (ours,), (theirs,) = found.run(inputs()), expected.run(inputs())
    return float((ours - theirs).square().sum() / theirs.square().sum())


def products(program: Program) -> list[tuple[int, ...]]:
    """Shapes of the weights of linear layers in order."""
    found = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    return [tuple(node.args[1].meta["val"].shape) for node in found]


def flat_and_steep(program: Program, flat: str, steep: str) -> None:
    """Give one weight singular values that are all alike, and the other one two that are far above the rest."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = program.weight(flat).shape
    tall = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=generator)).Q
    program.set_weight(flat, (tall if rows >= columns else tall.T).contiguous())
    rows, columns = program.weight(steep).shape
    two = torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns, generator=generator)
    program.set_weight(steep, two + 1e-3 * torch.randn(rows, columns, generator=generator))


@functools.cache
def canonical(model: str) -> Program:
    """A zoo model as the pass meets it; not to be changed by a test."""
    program = zoo.program(model)
    Canonicalize().rewrite(program, context_of(program))
    return program


def assert_runs_in_onnx_runtime(graft: Graft, model: str, folder: Path, tolerance: float = 2e-6) -> PassResult:
    """The grafted model gives in ONNX Runtime what its Program gives, at the size it was traced at and another one.

    Returns what the graft did; a second run must find nothing to do.
    """
    program = canonical(model)
    after, result = grafted(graft, program)
    assert result.changed
    lowered = LoweredProgram(after, folder / "lowered")
    for example in (program.example_inputs, other_size(program)):
        with inputs_rounded():
            largest = max(float(one.abs().max()) for one in after.run(*example))
            assert lowered.largest_error(*example) <= tolerance * largest
    for site in find_sites(after, graft.site_kinds):
        if isinstance(site, Site) and site.name.startswith(result.changed):
            assert isinstance(graft.propose(site, after, context_of(after)), Refusal), "a second run changes something"
    return result


def refusals(graft: Graft, program: Program, context: PassContext | None = None) -> dict[str, str]:
    """Reasons by site."""
    _, result = apply_graft(graft, program, (), context or context_of(program))
    return {one.name: one.reason for one in result.refusals}


def shared_weight() -> Program:
    """A layer whose weight is a table too."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, WIDTH), nn.Linear(WIDTH, 30, bias=False)
            self.head.weight = self.table.weight

        def forward(self, indices: Tensor) -> Tensor:
            return self.head(self.table(indices))

    return captured(Tied().eval(), indices=torch.arange(12).reshape(3, 4))


def with_infinity() -> Program:
    """`Two` with a first weight that is not finite."""
    program = two_layers()
    weight = program.weight("first.weight").detach().clone()
    weight[0, 0] = torch.inf
    program.set_weight("first.weight", weight)
    return program


def assert_refuses_unusable_weights(graft: Graft) -> None:
    """Weights that are shared or not finite."""
    assert refusals(graft, shared_weight())["head"] == "its weight table.weight is shared with embedding"
    assert refusals(graft, with_infinity())["first"] == "its weight first.weight holds values that are not finite"
