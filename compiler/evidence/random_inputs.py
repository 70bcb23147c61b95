"""Random inputs that a Program takes: what evidence is taken on where there is no data that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from compiler.program import Program, TensorSpec

RANDOM_BATCH_COUNT = 4
BYTE_VALUES = 256


def example_batch(
    program: Program, sizes: dict[str, int], seed: int, limits: dict[str, int] | None = None
) -> tuple[Tensor, ...]:
    """Random inputs of the given sizes of symbolic dims: normal floats, integers below `limits`, masks of ones.

    Single integers, such as a sample rate, choose what a model does: they stay what they are in the example inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        example
        if not spec.shape and not example.is_floating_point()
        else _random_input(spec, sizes, generator, limits or {})
        for spec, example in zip(program.inputs, program.example_inputs, strict=True)
    )


def random_batches(program: Program, seed: int) -> list[tuple[Tensor, ...]]:
    """Batches of several sizes that the model takes, or the example inputs where none can be found."""
    limits = _index_limits(program)
    wider = _byte_limits(program) | limits
    sizes = {d.name: d.range.nearest(2) for d in program.dimensions.values()}
    if _runs(program, example_batch(program, sizes, seed, wider)):
        limits = wider
    batches = []
    for index in range(2 * RANDOM_BATCH_COUNT):
        sizes = {d.name: d.range.nearest(max(d.minimum, 2 + index % 3)) for d in program.dimensions.values()}
        batches.append(example_batch(program, sizes, seed + 1 + index, limits))
    return [batch for batch in batches if _runs(program, batch)] or [program.example_inputs]


def _runs(program: Program, batch: tuple[Tensor, ...]) -> bool:
    try:
        program.run(*batch)
    except (RuntimeError, ValueError, IndexError):  # sizes that the model relates in a way the specs do not say
        return False
    return True


def _random_input(
    spec: TensorSpec, sizes: dict[str, int], generator: torch.Generator, limits: dict[str, int]
) -> Tensor:
    shape = [size if isinstance(size, int) else sizes.get(size.name, size.range.nearest(2)) for size in spec.shape]
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if "mask" in spec.name or dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
    return torch.randint(0, limits.get(spec.name, 2), shape, generator=generator, dtype=dtype)


def _byte_limits(program: Program) -> dict[str, int]:
    """What integer inputs would be if they were bytes: more telling than zeros and ones where a model takes them."""
    dtypes = {spec.name: getattr(torch, spec.dtype) for spec in program.inputs}
    return {
        name: min(BYTE_VALUES, torch.iinfo(dtype).max + 1)
        for name, dtype in dtypes.items()
        if not dtype.is_floating_point and dtype != torch.bool
    }


def _index_limits(program: Program) -> dict[str, int]:
    """The vocabulary size of each input that an embedding site looks up."""
    from compiler.sites import Site, find_sites

    limits: dict[str, int] = {}
    for site in find_sites(program, ("embedding",)):
        if isinstance(site, Site) and site.inputs[0].op == "placeholder":
            limits[site.inputs[0].name] = int(site.bindings["vocabulary_size"])
    return limits
