"""Names for what a computation depends on: digests of a Program with its weights, of batches, of settings.

Work that takes minutes is kept in folders named by them, so that it is found again when, and only when, nothing that it
came from has changed.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from compiler.program import Program

DIGITS = 32
NO_PART = ("cli", "report", "frontends", "backends", "healing")
"""Folders of this code that what a stand-in costs does not depend on, but through the Program."""
PARTS = ("compiler.passes.", "regraft_plugin_")
"""How modules with stand-ins are called that are not below the core's folder: built-in passes and plugin files."""


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


@functools.cache
def code_digest(classes: tuple[type[Any], ...] = ()) -> str:
    """Of this code as it is when a process first asks, of the files that define `classes`, and of plugin files."""
    import compiler

    core = Path(compiler.__file__).parent
    files = {file for file in core.rglob("*.py") if file.relative_to(core).parts[0] not in NO_PART}
    files |= {Path(inspect.getfile(one)) for one in classes}
    loaded = (module.__file__ for name, module in sys.modules.items() if name.startswith(PARTS))
    files |= {Path(file) for file in loaded if file}
    return text_digest(torch.__version__, *(file.read_text(encoding="utf-8") for file in sorted(files)))
