"""What several commands do first: find the plugins, read a model, bring it into canonical form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.cli.shared import Shared

if TYPE_CHECKING:
    from compiler.pipeline import PassRecord
    from compiler.program import Program
    from compiler.registry import Registry


def open_registry(shared: Shared) -> Registry:
    """Every plugin; those that failed to import are warned about on standard error."""
    from compiler.registry import Registry

    registry = Registry(shared.plugin)
    for warning in registry.warnings:
        shared.terminal.progress(f"warning, {warning}")
    return registry


@dataclass(frozen=True)
class LoadedModel:
    """A Program, and the plugins it was read with."""

    registry: Registry
    program: Program


def load(model: str, shared: Shared, inputs: Sequence[str] = (), *, allow_pickle: bool = False) -> LoadedModel:
    """Capture a model. Raises CompilerError when no frontend reads it."""
    from compiler.frontends import LoadOptions, load_model

    registry = open_registry(shared)
    shared.terminal.progress(f"capturing {model}")
    options = LoadOptions(tuple(inputs), allow_pickle)
    return LoadedModel(registry, load_model(model, options, registry.frontends().values()))


def run_exact_passes(loaded: LoadedModel, text: str, shared: Shared) -> tuple[Program, list[PassRecord]]:
    """The Program after the passes of `text`, as in --passes; names in it that no plugin registers are an error."""
    from compiler.evidence.data import load_dataset
    from compiler.pipeline import Pipeline
    from compiler.recipe import build_passes, parse_passes
    from compiler.rewriting import PassContext
    from compiler.target import Target

    passes = build_passes(parse_passes(text), loaded.registry.passes(), loaded.registry.pipelines())
    data = load_dataset(None, loaded.program)
    context = PassContext(Target("cpu"), data, progress=shared.terminal.progress)
    program, _, records = Pipeline(passes, context, loaded.registry.manager.hook).run(loaded.program)
    return program, records
