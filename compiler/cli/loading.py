"""What several commands do first: find the plugins, read a model, run passes to look at what they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.cli.shared import Shared

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.registry import Registry
    from compiler.rewriting import PassContext, PassResult, Rewrite


def open_registry(shared: Shared) -> Registry:
    """Every plugin; those that failed to import are warned about on standard error."""
    from compiler.registry import Registry

    registry = Registry(shared.plugin)
    for warning in registry.warnings:
        shared.terminal.warn(warning)
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


def after_passes(loaded: LoadedModel, text: str, context: PassContext) -> Program:
    """The Program after the passes of `text`, as in --passes. No evidence is taken: this is for looking only.

    Raises CompilerError for a name that no plugin registers.
    """
    from compiler.grafting import apply_graft
    from compiler.recipe import build_passes, parse_passes
    from compiler.rewriting import Graft, Rewrite

    program = loaded.program
    for one in build_passes(parse_passes(text), loaded.registry.passes(), loaded.registry.pipelines()):
        context.progress(one.name)
        if isinstance(one, Graft):
            program, _ = apply_graft(one, program, (), context)
        elif isinstance(one, Rewrite):
            program, _ = rewritten(one, program, context)
    return program


def rewritten(rewrite: Rewrite, program: Program, context: PassContext) -> tuple[Program, PassResult]:
    """The Program after one rewrite, and what it said; `program` itself is left alone."""
    after = program.copy()
    result = rewrite.rewrite(after, context)
    if not result.changed:
        return program, result
    after.refresh()
    return after, result


def looking_context(loaded: LoadedModel, shared: Shared, data: str | None = None) -> PassContext:
    """A context without a budget."""
    from compiler.evidence.data import load_dataset
    from compiler.rewriting import PassContext
    from compiler.target import Target

    dataset = load_dataset(data, loaded.program)
    registry = loaded.registry
    probes = tuple(probe() for probe in registry.probes().values())
    return PassContext(
        Target("cpu"),
        dataset,
        progress=shared.terminal.progress,
        mixers=registry.mixers(),
        formats=registry.formats(),
        probes=probes,
    )
