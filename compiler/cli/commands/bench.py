"""`compile bench`: how fast an artifact is, alone or against others in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.failures import UsageError
from compiler.cli.shared import SHARED, AllowPickle, Folder, Inputs, Shared, Threads

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.runtime.contenders import Arrays, Contender, Run


def bench(
    folder: Folder,
    *,
    against: Annotated[tuple[str, ...], Parameter(help="A model, .onnx file or artifact; may be repeated.")] = (),
    size: Annotated[tuple[str, ...], Parameter(help="DIM=N, as in batch=1; may be repeated.")] = (),
    threads: Threads = None,
    rounds: Annotated[int, Parameter(help="Rounds that alternate the sides.")] = 20,
    inputs: Inputs = (),
    allow_pickle: AllowPickle = False,
    shared: Shared = SHARED,
) -> Answer:
    """Time an artifact, alone or against models, .onnx files and other artifacts."""
    from compiler.cli.terminal import line
    from compiler.runtime.bench import BenchOptions
    from compiler.runtime.bench import bench as bench_artifact

    for name, count in (("threads", threads), ("rounds", rounds)):
        if count is not None and count < 1:
            raise UsageError(f"--{name} {count} is less than 1", f"Write --{name} 1.")
    options = BenchOptions(dict(map(_size, size)), threads, rounds)
    with shared.terminal.working(f"benching {folder}"):
        sides = [_contender(model, inputs, allow_pickle, shared) for model in against]
        report = bench_artifact(folder, options, sides)
    return Answer(report.to_json(), shown=(line(report.text()),))


def _contender(model: str, inputs: tuple[str, ...], allow_pickle: bool, shared: Shared) -> Contender:
    from compiler.runtime.contenders import contender

    path = Path(model)
    if path.suffix == ".onnx" or (path / "manifest.json").is_file():
        return contender(path)
    from compiler.cli.loading import load

    return torch_contender(load(model, shared, inputs, allow_pickle=allow_pickle).program)


def torch_contender(program: Program) -> Contender:
    """A captured model in torch, as it was before any pass."""
    from compiler.evidence.cost import weight_bytes
    from compiler.runtime.contenders import Contender, chosen_inputs

    names = [spec.name for spec in program.inputs]

    def open_program(threads: int | None) -> Run:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)

        def call(arrays: Arrays) -> Any:
            chosen = chosen_inputs(program.source, names, arrays)
            return program.run(*(torch.from_numpy(chosen[name]) for name in names))

        return call

    return Contender(f"{Path(program.source).name or 'model'} in torch", open_program, None, weight_bytes(program))


def _size(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name or not size.isdecimal() or int(size) < 1:
        raise UsageError(f"--size {text!r} is not DIM=N", "Write --size batch=1")
    return name, int(size)
