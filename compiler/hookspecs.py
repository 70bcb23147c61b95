"""Every hook a plugin may implement: pluggy, one typed sentence each. Built-ins use the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from compiler.backend import Backend
    from compiler.evidence import Probe
    from compiler.frontends import Frontend
    from compiler.mixers import Mixer
    from compiler.program import Program
    from compiler.quantization.formats import WeightFormat
    from compiler.rewriting import Pass, PassContext, PassResult

PROJECT = "regraft"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_passes() -> list[type[Pass]]:  # type: ignore[empty-body]
    """Return the pass classes (Rewrite or Graft) that this plugin adds; each is found by its `name`."""


@hookspec
def register_backends() -> list[type[Backend]]:  # type: ignore[empty-body]
    """Return the backend classes that this plugin adds."""


@hookspec
def register_frontends() -> list[type[Frontend]]:  # type: ignore[empty-body]
    """Return the frontend classes that this plugin adds; the first that accepts a model loads it."""


@hookspec
def register_pipelines() -> dict[str, str]:  # type: ignore[empty-body]
    """Return named pipelines: a name usable in --passes and the pass text it stands for."""


@hookspec
def register_probes() -> list[type[Probe]]:  # type: ignore[empty-body]
    """Return the probe classes whose scores are added to the evidence after every pass."""


@hookspec
def register_mixers() -> list[type[Mixer]]:  # type: ignore[empty-body]
    """Return the mixer classes that this plugin adds, for `linear-attention:kind=`; each is found by its `name`."""


@hookspec
def register_formats() -> list[type[WeightFormat]]:  # type: ignore[empty-body]
    """Return the weight formats that this plugin adds, for `quantize-weights:format=`; each is found by its `name`."""


@hookspec
def add_commands(app: Any) -> None:
    """Add commands to the cyclopts `app` of the `compile` command."""


@hookspec
def before_pass(name: str, program: Program, context: PassContext) -> None:
    """Be told that pass `name` is about to run on `program`."""


@hookspec
def after_pass(name: str, program: Program, result: PassResult) -> None:
    """Be told what pass `name` did; `program` is the Program after it."""


@hookspec
def artifact_built(folder: Path) -> None:
    """Be told that a complete artifact stands in `folder`."""
