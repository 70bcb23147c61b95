"""What training may take here: the faster form of frozen weights, and batches cut to what memory allows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compiler.healing.end_to_end import Lesson
from compiler.healing.frozen_graph import FrozenLinear, linear_weight
from compiler.healing.options import MEGABYTE
from compiler.healing.text_pieces import Batch, halved

if TYPE_CHECKING:
    from compiler.program import Program

TIMED_RUNS, TIMED_ROWS = 5, 256
WORTH_HALVING = 1.15
"""How much faster bfloat16 has to be than float32."""
SAVED_SHARE = 0.3
"""Of the memory: what is saved for the backward pass. What that pass computes and pieces of freed memory that are too
small for it made it 1.8 to 3 times as much."""
REMEMBERED_SHARE = 1 / 16
"""Of the memory: what is remembered of the teacher."""
MOST_HALVINGS = 6


def half_is_faster(program: Program) -> bool:
    """Whether products with bfloat16 weights are faster here than with float32 ones: timed on a weight of the middle
    size among those of linear layers, forward and backward, alternating; the fastest run of each counts.
    """
    names = {read[0] for node in program.graph.nodes if (read := linear_weight(node)) is not None}
    weights = sorted((program.weight(name).detach() for name in names), key=lambda one: one.numel())
    if not weights or weights[len(weights) // 2].dtype != torch.float32:
        return False
    middle = weights[len(weights) // 2]
    fastest = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    forms = {dtype: FrozenLinear(middle.to(dtype), None) for dtype in fastest}
    x = torch.ones(TIMED_ROWS, middle.shape[1], requires_grad=True)
    for _ in range(TIMED_RUNS):
        for dtype, linear in forms.items():
            started = time.perf_counter()
            linear(x).sum().backward()
            fastest[dtype] = min(fastest[dtype], time.perf_counter() - started)
    return fastest[torch.float32] > WORTH_HALVING * fastest[torch.bfloat16]


def halvings_that_fit(lesson: Lesson, batch: Batch, memory: float) -> int:
    """How often batches like this one have to be halved so that training takes no more than `memory` megabytes.

    Small ones are measured first, and larger ones only where they are likely to fit: of a batch twice as large at least
    twice as much is saved, and where it grew faster than that, it goes on growing so.
    """
    sizes = [batch]
    while len(sizes) <= MOST_HALVINGS:
        half = halved(sizes[-1:], by_tokens=lesson.tokens is not None)[0]
        if half[0].shape == sizes[-1][0].shape:
            break
        sizes.append(half)
    allowed, taken, growth = SAVED_SHARE * memory * MEGABYTE, 0, 2.0
    for halvings in reversed(range(len(sizes))):
        if taken * growth > allowed:
            return halvings + 1
        before, taken = taken, saved_bytes(lesson, sizes[halvings])
        if taken > allowed:
            return min(halvings + 1, len(sizes) - 1)
        growth = max(2.0, taken / before) if before else 2.0
    return 0


def saved_bytes(lesson: Lesson, batch: Batch) -> int:
    """What one forward pass of the student saves for the backward pass, besides the weights and the batch."""
    held = {one.untyped_storage().data_ptr() for one in (*_tensors(lesson.student), *batch)}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an operator's own output, kept as it is, would keep the operator and never be freed

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        lesson.loss(batch)
    return sum(seen.values())


def _tensors(module: fx.GraphModule) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
