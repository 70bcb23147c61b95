"""What training may take here: the faster form of frozen weights, and batches cut to what memory allows."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from compiler.healing.end_to_end import Lesson
from compiler.healing.options import MEGABYTE
from compiler.healing.text_pieces import Batch

TIMED_RUNS = 3
WORTH_HALVING = 1.15
"""How much faster bfloat16 has to be than float32."""
SAVED_SHARE = 0.5
"""Of the memory: what is saved for the backward pass. The rest is for what that pass computes."""
MOST_HALVINGS = 6


def half_is_faster(whole: fx.GraphModule, half: fx.GraphModule, inputs: Sequence[Tensor]) -> bool:
    """Whether the second graph runs faster than the first: alternating runs, the fastest of each counts."""
    fastest = [float("inf"), float("inf")]
    with torch.no_grad():
        for _ in range(TIMED_RUNS):
            for side, module in enumerate((whole, half)):
                started = time.perf_counter()
                module(*inputs)
                fastest[side] = min(fastest[side], time.perf_counter() - started)
    return fastest[0] > WORTH_HALVING * fastest[1]


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
