"""Names for what a computation depends on: digests of a Program with its weights, of batches, of settings.

Work that takes minutes is kept in folders named by them, so that it is found again when, and only when, nothing that it
came from has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from compiler.program import Program

DIGITS = 32


def program_digest(program: Program) -> str:
    """Of the graph as text, and of every weight by name."""
    weights = program.weights()
    named = (part for name in sorted(weights) for part in (name, tensor_digest(weights[name])))
    return text_digest(program.text(), *named)


def batches_digest(batches: Iterable[Sequence[Tensor]]) -> str:
    """Of data, batch by batch."""
    return text_digest(*(tensor_digest(tensor) for batch in batches for tensor in batch))


def tensor_digest(tensor: Tensor) -> str:
    """Of dtype, shape and bytes."""
    flat = tensor.detach().cpu().contiguous().flatten()
    content = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if flat.numel():
        content.update(flat.view(torch.uint8).numpy().data)
    return content.hexdigest()[:DIGITS]


def text_digest(*texts: str) -> str:
    """Of texts in order; where one ends and the next begins counts."""
    content = hashlib.sha256()
    for text in texts:
        content.update(f"{len(text)}:{text}".encode())
    return content.hexdigest()[:DIGITS]
