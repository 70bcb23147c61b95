"""Which dims of the inputs are symbolic, and example inputs of other sizes to prove that they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, overload

import torch
from torch import Tensor

DynamicDims = Mapping[str, Mapping[int, str]]
"""Per input: dim index -> dim name."""

GROWTH = {"batch": 1}
"""How much larger the second size is; other dims grow by 3, so that no two sizes agree by chance."""


def default_dynamic_dims(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """Dim 0 is `batch` when all inputs share its size; dim 1 of integer and bool inputs of rank 2 is `sequence`."""
    dims: dict[str, dict[int, str]] = {name: {} for name in inputs}
    leading = {tensor.shape[0] for tensor in inputs.values() if tensor.dim()}
    if len(leading) == 1:
        for name, tensor in inputs.items():
            if tensor.dim():
                dims[name][0] = "batch"
    lengths: dict[str, int] = {}
    for name, tensor in inputs.items():
        if tensor.dim() == 2 and not tensor.is_floating_point() and not tensor.is_complex():
            dim = "decoder_sequence" if name.startswith("decoder_") else "sequence"
            if lengths.setdefault(dim, tensor.shape[1]) == tensor.shape[1]:
                dims[name][1] = dim
            else:
                dims[name][1] = f"{name}_{dim}"
    return dims


@overload
def dim_sizes(inputs: Mapping[str, Tensor], dims: DynamicDims) -> dict[str, int]: ...
@overload
def dim_sizes(inputs: Mapping[str, Tensor], dims: DynamicDims, *, every: Literal[True]) -> dict[str, list[int]]: ...
def dim_sizes(
    inputs: Mapping[str, Tensor], dims: DynamicDims, *, every: bool = False
) -> dict[str, int] | dict[str, list[int]]:
    """The size of every named dim; with `every`, its size in each input that has it."""
    sizes: dict[str, list[int]] = {}
    for input_name, named in dims.items():
        for index, name in named.items():
            sizes.setdefault(name, []).append(inputs[input_name].shape[index])
    return sizes if every else {name: found[0] for name, found in sizes.items()}


def resized(inputs: Mapping[str, Tensor], dims: DynamicDims, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The inputs with the named dims at other sizes: their own values repeated or cut, which so stay valid."""
    changed = {}
    for input_name, tensor in inputs.items():
        for index, name in dims.get(input_name, {}).items():
            if name in sizes and sizes[name] != tensor.shape[index]:
                rows = torch.arange(sizes[name]) % tensor.shape[index]
                tensor = tensor.index_select(index, rows.to(tensor.device))
        changed[input_name] = tensor
    return changed


def sizes_to_prove(
    sizes: Mapping[str, int], ranges: Mapping[str, tuple[int, int | None]], multiples: Mapping[str, int]
) -> dict[str, int]:
    """Another size for every dim: larger where its range allows it, otherwise smaller; multiples of what is asked."""
    wanted = {}
    for name, size in sizes.items():
        minimum, maximum = ranges.get(name, (2, None))
        multiple = multiples.get(name, 1)
        larger = size + (GROWTH.get(name, 3) if multiple == 1 else multiple)
        if maximum is None or larger <= maximum:
            wanted[name] = larger
        elif size - multiple >= minimum:
            wanted[name] = size - multiple
    return wanted


def held_static(dims: DynamicDims, names: Iterable[str]) -> dict[str, dict[int, str]]:
    """The dims without those of the given names."""
    dropped = set(names)
    return {
        input_name: {index: name for index, name in named.items() if name not in dropped}
        for input_name, named in dims.items()
    }
