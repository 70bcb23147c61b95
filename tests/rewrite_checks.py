"""What every rewrite must do: keep the numbers at every size, leave the Program it is given alone, be idempotent."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from compiler.evidence.data import Dataset
from compiler.frontends.torch_export import capture
from compiler.mixers import Mixer
from compiler.pipeline import tokens_that_count
from compiler.program import Dimension, Program
from compiler.quantization.formats import WeightFormat
from compiler.registry import Registry
from compiler.rewriting import PassContext, PassResult, Rewrite
from compiler.states import MASK
from compiler.target import Target


@functools.cache
def shipped_mixers() -> dict[str, type[Mixer]]:
    """The mixers of this repository by name."""
    return Registry(entry_points=False).mixers()


@functools.cache
def shipped_formats() -> dict[str, type[WeightFormat]]:
    """The weight formats of this repository by name."""
    return Registry(entry_points=False).formats()


def context_of(program: Program) -> PassContext:
    """A context whose calibration data are the program's own examples, and which knows what ships."""
    examples = (program.example_inputs,)
    data = Dataset("examples", examples, examples)
    return PassContext(Target.parse("cpu"), data, mixers=shipped_mixers(), formats=shipped_formats())


def captured(module: nn.Module, **inputs: Tensor) -> Program:
    """The module as a Program; the first dim of every input is the dynamic dim `batch`."""
    return capture(module, inputs, source=type(module).__name__, dynamic={name: {0: "batch"} for name in inputs})


def rewritten(rewrite: Rewrite, program: Program, *, tolerance: float = 0.0) -> tuple[Program, PassResult]:
    """A rewritten copy and what was done. Asserts the three properties; `tolerance` is of the largest output value."""
    text_before = program.text()
    context = context_of(program)
    after = program.copy()
    result = rewrite.rewrite(after, context)
    assert program.text() == text_before, "the original's graph changed"
    for inputs in (program.example_inputs, other_size(program)):
        for expected, found in zip(program.run(*inputs), after.run(*after.complete(inputs)), strict=not after.states):
            kept = tokens_that_count(program, after, inputs, expected)
            assert_near(found[kept], expected[kept], tolerance)
    text_after = after.text()
    again = rewrite.rewrite(after, context)
    assert again.changed == (), "a second run changed something"
    assert after.text() == text_after
    return after, result


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal dtype and shape, and no difference above `tolerance` of the largest expected value."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if tolerance == 0:
        assert torch.equal(found, expected)
        return
    difference = (found.double() - expected.double()).abs().max()
    assert difference <= tolerance * expected.double().abs().max().clamp(min=1e-30)


def other_size(program: Program) -> tuple[Tensor, ...]:
    """The example inputs with every dynamic dim larger by one, where its range allows; padding stays at the end."""
    grown = []
    for spec, tensor in zip(program.inputs, program.example_inputs, strict=True):
        for index, dim in enumerate(spec.shape):
            if isinstance(dim, Dimension) and (dim.maximum is None or tensor.shape[index] < dim.maximum):
                rows = torch.arange(tensor.shape[index] + 1) % tensor.shape[index]
                tensor = tensor.index_select(index, rows)
        grown.append(tensor.sort(descending=True).values if spec.name == MASK else tensor)
    return tuple(grown)
