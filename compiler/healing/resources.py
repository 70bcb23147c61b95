"""What training may take here: the faster form of frozen weights, and batches cut to what memory allows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compiler.healing.end_to_end import Lesson
from compiler.healing.frozen_graph import FrozenLinear, linear_weight
from compiler.healing.options import MEGABYTE
from compiler.healing.text_pieces import Batch

if TYPE_CHECKING:
    from compiler.program import Program

TIMED_RUNS, TIMED_ROWS = 5, 256
WORTH_HALVING = 1.15
"""How much faster bfloat16 has to be than float32."""
SAVED_SHARE = 0.5
"""Of the memory: what is saved for the backward pass. The rest is for what that pass computes."""
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


def fits(lesson: Lesson, batch: Batch, memory: int) -> bool:
    """Whether training on `batch` takes no more than `memory` megabytes."""
    return saved_bytes(lesson, batch) <= SAVED_SHARE * memory * MEGABYTE


def saved_bytes(lesson: Lesson, batch: Batch) -> int:
    """What one forward pass of the student saves for the backward pass, weights left out."""
    held = {one.untyped_storage().data_ptr() for one in _tensors(lesson.student)}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        lesson.loss(batch)
    return sum(seen.values())


def _tensors(module: fx.GraphModule) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
