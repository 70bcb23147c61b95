"""Every public hook, implemented once. With OUTSIDE_LOG set, each call adds a line to that file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from regraft_outside.drop_multiply_by_one import DropMultiplyByOne
from regraft_outside.last_token import LastToken
from regraft_outside.scaled_frontend import ScaledFrontend
from regraft_outside.sign_weights import OutsideSigns
from regraft_outside.text_backend import TextBackend

from compiler.backend import Backend
from compiler.evidence import Probe
from compiler.frontends import Frontend
from compiler.hookspecs import hookimpl
from compiler.mixers import Mixer
from compiler.program import Program
from compiler.quantization.formats import WeightFormat
from compiler.rewriting import Pass, PassContext, PassResult


class FiniteWeights(Probe):
    """The share of weights that are finite."""

    name: ClassVar[str] = "finite-weights"

    def applies(self, program: Program) -> bool:
        return bool(program.weights())

    def score(self, program: Program, seed: int) -> float:
        values = [torch.isfinite(weight).float().mean() for weight in program.weights().values()]
        return float(torch.stack(values).mean())


def called(hook: str, detail: str = "") -> None:
    """Note that a hook was called."""
    log = os.environ.get("OUTSIDE_LOG")
    if log:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{hook} {detail}".rstrip() + "\n")


@hookimpl
def register_passes() -> list[type[Pass]]:
    called("register_passes")
    return [DropMultiplyByOne]


@hookimpl
def register_backends() -> list[type[Backend]]:
    called("register_backends")
    return [TextBackend]


@hookimpl
def register_frontends() -> list[type[Frontend]]:
    called("register_frontends")
    return [ScaledFrontend]


@hookimpl
def register_pipelines() -> dict[str, str]:
    called("register_pipelines")
    return {"outside-tidy": "canonicalize,drop-multiply-by-one"}


@hookimpl
def register_probes() -> list[type[Probe]]:
    called("register_probes")
    return [FiniteWeights]


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    called("register_mixers")
    return [LastToken]


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    called("register_formats")
    return [OutsideSigns]


@hookimpl
def add_commands(app: Any) -> None:
    called("add_commands")

    def outside_greet(name: str) -> None:
        """Greet someone, as a plugin's command."""
        print(f"hello {name}")

    app.command(outside_greet)


@hookimpl
def before_pass(name: str, program: Program, context: PassContext) -> None:
    called("before_pass", name)


@hookimpl
def after_pass(name: str, program: Program, result: PassResult) -> None:
    called("after_pass", f"{name} {len(result.changed)}")


@hookimpl
def artifact_built(folder: Path) -> None:
    called("artifact_built", str((folder / "manifest.json").is_file()))
