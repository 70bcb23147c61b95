"""The inputs of an incremental Program: new placeholders with dims of their own, and what follows from the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

from compiler.patterns import aten, insert_call, value
from compiler.program import Dimension, Program, TensorSpec
from compiler.states import BATCH, CAPACITY, KEPT, MASK, SEQUENCE, TOTAL

EXAMPLE_SIZES = {TOTAL: 11, CAPACITY: 17, KEPT: 5}
"""Of the dims that a captured model does not have: unlike each other, so that tracing tells them apart."""


@dataclass(frozen=True)
class Counts:
    """What the mask says of every row.

    past int64 [batch] counts the tokens before, positions int64 [batch, tokens] are the places of the new ones,
    seqlens_k int32 [batch] the keys less 1, total the most keys (a symbolic int).
    """

    tokens: fx.Node
    past: fx.Node
    positions: fx.Node
    seqlens_k: fx.Node
    total: fx.Node


class InputWriter:
    """Adds inputs to a Program, whose `inputs` and `example_inputs` grow with its placeholders."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.batch = program.placeholders()[0]
        self._sizes: dict[str, Any] = {BATCH: value(self.batch).shape[0], SEQUENCE: value(self.batch).shape[1]}
        self._dims = dict(program.dimensions)

    def add(self, name: str, dtype: torch.dtype, shape: Sequence[int | str]) -> fx.Node:
        """A placeholder of sizes and dim names; its example is zeros, with a mask's ones."""
        example_sizes = EXAMPLE_SIZES | {BATCH: self.program.example_inputs[0].shape[0]}
        made = torch.zeros([size if isinstance(size, int) else example_sizes[size] for size in shape], dtype=dtype)
        last = self.program.placeholders()[-1]
        with self.program.graph.inserting_after(last):
            node = self.program.graph.placeholder(name.replace(".", "_"))
        mode = self.batch.meta["val"].fake_mode
        sizes = [self._size(size) for size in shape]  # outside of the mode: a new symbol needs a real tensor
        with mode:
            node.meta["val"] = torch.empty(sizes, dtype=dtype)
        spec = TensorSpec(name, str(dtype).removeprefix("torch."), tuple(self._dim(size) for size in shape))
        self.program.inputs = (*self.program.inputs, spec)
        self.program.example_inputs = (*self.program.example_inputs, made)
        return node

    def _dim(self, size: int | str) -> int | Dimension:
        return size if isinstance(size, int) else self._dims.setdefault(size, Dimension(size))

    def _size(self, size: int | str) -> Any:
        if isinstance(size, int):
            return size
        if size not in self._sizes:
            mode = self.batch.meta["val"].fake_mode
            context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
            real = torch.empty(EXAMPLE_SIZES[size])
            fake = mode.from_tensor(real, source=ConstantSource(size), symbolic_context=context)
            self._sizes[size] = fake.shape[0]
        return self._sizes[size]


def replace_mask(program: Program, tokens: fx.Node, mask: fx.Node | None) -> tuple[InputWriter, Counts, fx.Node]:
    """Put a mask over past and new tokens in the place of `mask` over the new ones; what it counts, and the old mask's
    value, which is ones wherever a sequence has tokens.
    """
    batch_count = program.example_inputs[0].shape[0]
    if mask is not None:
        index = program.placeholders().index(mask)
        for name in ("inputs", "example_inputs"):
            kept = list(getattr(program, name))
            del kept[index]
            setattr(program, name, tuple(kept))
    before = program.placeholders()[-1].next
    ones = insert_call(before, aten.ones_like.default, tokens, dtype=torch.int64)
    if mask is not None:
        mask.replace_all_uses_with(ones)
        program.graph.erase_node(mask)
    writer = InputWriter(program)
    added = writer.add(MASK, torch.int64, [BATCH, TOTAL])
    program.example_inputs = (
        *program.example_inputs[:-1],
        torch.ones(batch_count, EXAMPLE_SIZES[TOTAL], dtype=torch.int64),
    )
    new_count = insert_call(before, aten.sym_size.int, tokens, 1)
    total = insert_call(before, aten.sym_size.int, added, 1)
    keys = insert_call(before, aten.sum.dim_IntList, added, [1])  # [batch]
    past = insert_call(before, aten.clamp.default, insert_call(before, aten.sub.Tensor, keys, new_count), 0)
    steps = insert_call(before, aten.arange.default, new_count)  # [tokens]
    positions = insert_call(before, aten.add.Tensor, insert_call(before, aten.unsqueeze.default, past, 1), steps)
    seqlens_k = insert_call(before, aten.to.dtype, insert_call(before, aten.sub.Tensor, keys, 1), torch.int32)
    return writer, Counts(tokens, past, positions, seqlens_k, total), ones
