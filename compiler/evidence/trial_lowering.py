"""Programs lowered on trial, to a folder that is gone afterwards, and what their size and speed follow from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compiler.content_digest import code_digest, text_digest
from compiler.runtime.processor import processor_instructions

if TYPE_CHECKING:
    from compiler.backend import Backend, Lowered
    from compiler.program import Program
    from compiler.target import Target

HALF_EXACT_BELOW = 2**24
"""Numbers of a tensor up to which it is looked at whether float16 holds it, and backends may store it so."""


class OnTrial:
    """A Program that was lowered to a folder of its own for as long as the trial lasts."""

    def __init__(self, program: Program, folder: Path, lowered: Lowered, target: Target) -> None:
        self._program, self._folder, self._lowered, self._target = program, folder, lowered, target

    @property
    def bytes(self) -> int:
        """Of all files of the payload."""
        from compiler.artifact_contents import files_bytes

        return files_bytes(self._folder, self._lowered.files)

    @property
    def kernels(self) -> Mapping[str, int]:
        """The operators that really run, by name."""
        return self._lowered.kernels

    def call(self, batch: Sequence[Tensor]) -> Callable[[], Any]:
        """A function that runs the payload once on `batch`."""
        from compiler.artifact_contents import trial_manifest
        from compiler.runtime.engines import open_engine

        manifest = trial_manifest(self._program, self._lowered, self._target)
        engine = open_engine(self._folder, manifest)
        inputs = zip(self._program.inputs, self._program.complete(batch), strict=True)
        arrays = {spec.name: tensor.numpy() for spec, tensor in inputs}
        return lambda: engine.run(arrays)


@contextmanager
def lowered_on_trial(program: Program, backend: Backend, target: Target) -> Iterator[OnTrial]:
    """`program` lowered to a folder that is gone at the end of the block."""
    with TemporaryDirectory(prefix="regraft-trial-") as name:
        folder = Path(name)
        yield OnTrial(program, folder, backend.lower(program, target, folder), target)


def module_form(module: nn.Module) -> str:
    """What the size and speed of a module follow from: classes, shapes, dtypes, and what float16 holds exactly."""
    classes = ",".join(type(part).__name__ for part in module.modules())
    graph = str(module.graph) if isinstance(module, torch.fx.GraphModule) else ""
    tensors = [f"{name} {one.dtype} {tuple(one.shape)} {_fits_half(one)}" for name, one in _tensors(module).items()]
    return f"{classes} {graph} {tensors}"


def lowering_digest(backend: Backend, target: Target) -> str:
    """Of what sizes follow from beside the module: a backend, its code and this one, and a target."""
    import inspect

    file = Path(inspect.getfile(type(backend)))
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return text_digest(backend.name, str(target), code_digest(), *(one.read_text(encoding="utf-8") for one in files))


def machine_digest() -> str:
    """Of what speeds follow from as well: this machine's processors, and how many of them may be used."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return text_digest(str(os.cpu_count()), threads, *sorted(processor_instructions() or ()))


def _tensors(module: nn.Module) -> Mapping[str, Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


def _fits_half(tensor: Tensor) -> bool:
    if tensor.dtype != torch.float32 or tensor.numel() > HALF_EXACT_BELOW:
        return False
    return torch.equal(tensor.detach().half().float(), tensor.detach())
