"""Modules and Programs as a backend lowers them, on trial: the bytes of the payload and the seconds of a run.

A stand-in is lowered alone at the sizes at which it is called, beside the original. What a module weighs depends on its
shapes and not on its numbers, so that one figure serves every site of a shape, in later runs too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compiler.content_digest import code_digest, text_digest
from compiler.kept_work import kept_folder, write_whole

if TYPE_CHECKING:
    from compiler.backend import Backend, Lowered
    from compiler.program import Program
    from compiler.target import Target

KIND, FILE_NAME = "stand-ins", "figures.json"
HALF_EXACT_BELOW = 2**24
"""Numbers of a tensor up to which it is looked at whether float16 holds it, and backends may store it so."""

Shape = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Figures:
    """What a stand-in uses: bytes of its payload, FLOPs of a call, and seconds beside those of the original.

    `seconds` is None where nothing was timed.
    """

    bytes: int
    flops: int
    seconds: float | None = None
    original_seconds: float | None = None

    def beside(self, whole: float) -> Figures:
        """The same, with the seconds that it takes where the original takes `whole`."""
        if self.seconds is None or not self.original_seconds:
            return self
        return Figures(self.bytes, self.flops, whole * self.seconds / self.original_seconds, whole)


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


class StandAlone:
    """Figures of modules, each shape measured once."""

    def __init__(self, backend: Backend, target: Target, *, timed: bool) -> None:
        self._backend, self._target, self._timed = backend, target, timed
        digest = text_digest(backend.name, str(target), code_digest(), backend_digest(backend))
        self._path = kept_folder(KIND, digest) / FILE_NAME
        self._known: dict[str, Figures] = _read(self._path)

    def figures(
        self, name: str, module: nn.Module, original: nn.Module, called: Sequence[Shape], typical: Sequence[Shape]
    ) -> Figures:
        """Of `module`, `name` being what made it: bytes and seconds where it is called with inputs of `typical` shapes,
        FLOPs with those that it is `called` with on the example inputs.
        """
        form = text_digest(name, str(called), str(typical), module_form(module))
        known = self._known.get(form)
        if known is None or (self._timed and known.seconds is None):
            self._known[form] = known = self._measured(module, original, called, typical)
            write_whole(self._path, self._write)
        return known

    def _measured(
        self, module: nn.Module, original: nn.Module, called: Sequence[Shape], typical: Sequence[Shape]
    ) -> Figures:
        from compiler.evidence.cost import module_flops
        from compiler.evidence.payload import alternate
        from compiler.runtime.bench import Spread

        inputs = drawn(typical)
        flops = module_flops(module, drawn(called))
        with lowered_on_trial(_program(module, inputs), self._backend, self._target) as ours:
            if not self._timed:
                return Figures(ours.bytes, flops)
            with lowered_on_trial(_program(original, inputs), self._backend, self._target) as theirs:
                seconds = alternate(ours.call(inputs), theirs.call(inputs))
            return Figures(ours.bytes, flops, *(Spread.of(one).median for one in seconds))

    def _write(self, path: Path) -> None:
        path.write_text(json.dumps({form: asdict(one) for form, one in self._known.items()}), encoding="utf-8")


class Several(nn.Module):
    """Modules side by side, each with inputs of its own: stand-ins that share what they store."""

    def __init__(self, modules: Sequence[nn.Module], input_counts: Sequence[int]) -> None:
        super().__init__()
        self.parts, self._counts = nn.ModuleList(modules), tuple(input_counts)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all, in order."""
        given, found = list(inputs), []
        for part, count in zip(self.parts, self._counts, strict=True):
            made = part(*given[:count])
            found.append(made[0] if isinstance(made, tuple) else made)
            given = given[count:]
        return tuple(found)


def module_form(module: nn.Module) -> str:
    """What the size and speed of a module follow from: classes, shapes, dtypes, and what float16 holds exactly."""
    classes = ",".join(type(part).__name__ for part in module.modules())
    graph = str(module.graph) if isinstance(module, torch.fx.GraphModule) else ""
    tensors = [f"{name} {one.dtype} {tuple(one.shape)} {_fits_half(one)}" for name, one in _tensors(module).items()]
    return f"{classes} {graph} {tensors}"


def drawn(shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Inputs of these shapes: standard normal numbers; zeros for what is no float."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(size, generator=generator).to(dtype) if dtype.is_floating_point else torch.zeros(size, dtype=dtype)
        for size, dtype in shapes
    )


def _tensors(module: nn.Module) -> Mapping[str, Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


def _fits_half(tensor: Tensor) -> bool:
    if tensor.dtype != torch.float32 or tensor.numel() > HALF_EXACT_BELOW:
        return False
    return torch.equal(tensor.detach().half().float(), tensor.detach())


def _program(module: nn.Module, inputs: Sequence[Tensor]) -> Program:
    from compiler.frontends.torch_export import capture

    named = {f"x{index}": tensor for index, tensor in enumerate(inputs)}
    return capture(module, named, source="a stand-in", dynamic={})


def backend_digest(backend: Backend) -> str:
    """Of the code of a backend."""
    import inspect

    file = Path(inspect.getfile(type(backend)))
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return text_digest(*(one.read_text(encoding="utf-8") for one in files))


def _read(path: Path) -> dict[str, Figures]:
    """Figures by form; none where the file is missing or not what this code writes."""
    try:
        return {form: Figures(**one) for form, one in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
