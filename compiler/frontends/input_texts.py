"""Read `--input name=dtype[shape]`, as in `x=float32[batch,3,height:64,64]`: a named dim is symbolic, `:64` is its size
in the example. `--input name=16000` and `name=[1,2,3]` fix an input at these numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compiler.errors import CompilerError, nearest_hint

INPUT = re.compile(r"\s*(?P<name>[^=\s]+)\s*=\s*(?P<dtype>\w+)\s*(?:\[(?P<shape>[^\]]*)\])?\s*")
FIXED = re.compile(r"\s*(?P<name>[^=\s]+)\s*=\s*(?P<numbers>[-\d.\[].*|true|false)\s*")
DIM = re.compile(r"(?P<fixed>\d+)|(?P<name>[A-Za-z_]\w*)(?::(?P<size>\d+))?")
DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
BATCH_SIZE = 2
OTHER_SIZE = 16
SEED = 0


@dataclass(frozen=True)
class StatedInput:
    """One `--input`: a name, a dtype, and per dim a size and the dim's name where it is symbolic."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int, ...]
    dim_names: tuple[str | None, ...]

    @property
    def dynamic(self) -> dict[int, str]:
        """dim index -> dim name, for the symbolic ones."""
        return {index: name for index, name in enumerate(self.dim_names) if name is not None}

    def example(self, generator: torch.Generator) -> Tensor:
        """Values that most models take: normal floats, and for integers 0 or 1, which index any table of two rows."""
        if self.dtype.is_floating_point:
            return torch.randn(self.sizes, generator=generator).to(self.dtype)
        return torch.randint(0, 2, self.sizes, generator=generator).to(self.dtype)


def stated_inputs(texts: Sequence[str]) -> dict[str, StatedInput]:
    """All `--input` texts by input name. Raises CompilerError that quotes the text at fault."""
    stated: dict[str, StatedInput] = {}
    for text in texts:
        one = _stated_input(text)
        if one.name in stated:
            raise CompilerError(f"reading --input {text!r}", f"{one.name!r} is stated twice", "State every input once.")
        stated[one.name] = one
    return stated


def fixed_inputs(texts: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The inputs that texts fix, as numbers or nested lists of them by name, and the texts that do not.

    Raises CompilerError that quotes the text at fault.
    """
    fixed: dict[str, Any] = {}
    others = []
    for text in texts:
        match = FIXED.fullmatch(text)
        if match is None:
            others.append(text)
            continue
        doing = f"reading --input {text!r}"
        try:
            numbers = json.loads(match["numbers"])
            torch.tensor(numbers)
        except (ValueError, TypeError, RuntimeError) as error:
            hint = "Write a number, or a list of equally long lists of numbers, as in sizes=[1,3,224,224]."
            raise CompilerError(doing, f"{match['numbers']!r} is no tensor of numbers", hint) from error
        if match["name"] in fixed:
            raise CompilerError(doing, f"{match['name']!r} is stated twice", "State every input once.")
        fixed[match["name"]] = numbers
    return fixed, others


def stated_examples(stated: dict[str, StatedInput]) -> dict[str, Tensor]:
    """Example tensors for stated inputs, the same in every run."""
    generator = torch.Generator().manual_seed(SEED)
    return {name: one.example(generator) for name, one in stated.items()}


def _stated_input(text: str) -> StatedInput:
    doing = f"reading --input {text!r}"
    match = INPUT.fullmatch(text)
    if match is None:
        raise CompilerError(doing, "it is not name=dtype[shape]", "Write it as in x=float32[batch,3,224,224].")
    dtype = match["dtype"]
    if dtype not in DTYPES:
        raise CompilerError(
            doing, f"there is no dtype {dtype!r}", nearest_hint(dtype, DTYPES, f"Dtypes: {', '.join(DTYPES)}.")
        )
    sizes: list[int] = []
    names: list[str | None] = []
    for part in (match["shape"] or "").split(","):
        part = part.strip()
        if not part:
            continue
        dim = DIM.fullmatch(part)
        if dim is None:
            raise CompilerError(doing, f"{part!r} is no dim", "A dim is a number, a name, or name:size.")
        names.append(dim["name"])
        default = BATCH_SIZE if dim["name"] == "batch" else OTHER_SIZE
        sizes.append(int(dim["fixed"] or dim["size"] or default))
    return StatedInput(match["name"], DTYPES[dtype], tuple(sizes), tuple(names))
