"""`compile MODEL`: the command without a name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.failures import UsageError
from compiler.cli.shared import SHARED, AllowPickle, DataPath, Inputs, Shared

if TYPE_CHECKING:
    from compiler.recipe import Recipe

REPORT_NAME = "report.json"


def compile_command(
    model: Annotated[
        str | None,
        Parameter(help="A folder with config.json, a .onnx, .gguf or .pt2 file, file.py:factory or module:factory."),
    ] = None,
    *,
    passes: Annotated[str | None, Parameter(help="name:key=value:key=value,... The backend's own if left out.")] = None,
    recipe: Annotated[Path | None, Parameter(help="A recipe.toml, as every artifact holds one.")] = None,
    backend: Annotated[str | None, Parameter(help="See: compile backends")] = None,
    target: Annotated[str | None, Parameter(help="See: compile targets")] = None,
    data: DataPath = None,
    budget: Annotated[
        tuple[str, ...],
        Parameter(
            help="size=0.35, flops=0.5 or latency=0.6 of the model's, or size=20MB, latency=8ms: what stands where "
            "is chosen among all grafts, or those in --passes, at least cost; may be repeated."
        ),
    ] = (),
    max_drop: Annotated[float | None, Parameter(help="What outputs may lose; sites beyond it are given back.")] = None,
    inputs: Inputs = (),
    heal: Annotated[
        str | None,
        Parameter(help="Minutes that grafts learn after they are put in, as 15 or 15:optimizer=muon:lora=8."),
    ] = None,
    heal_folder: Annotated[
        Path | None, Parameter(help="Where healing keeps its work, so that a killed run goes on; a cache if left out.")
    ] = None,
    allow_simulated: Annotated[
        bool | None,
        Parameter(negative=(), help="Take formats without a kernel: smaller, but unpacked to floats when they run."),
    ] = None,
    seed: Annotated[int | None, Parameter(help="Seed of everything that is random.")] = None,
    allow_pickle: AllowPickle = False,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="The folder to write.")] = None,
    shared: Shared = SHARED,
) -> Answer:
    """Compile a model into an artifact."""
    from dataclasses import replace

    from compiler.healing.options import parse_healing
    from compiler.model_name import model_name
    from compiler.recipe import Recipe, parse_passes

    given: dict[str, Any] = {
        "model": model,
        "passes": None if passes is None else parse_passes(passes),
        "backend": backend,
        "target": target,
        "data": data,
        "budget": budget or None,
        "max_drop": max_drop,
        "allow_simulated": allow_simulated,
        "seed": seed,
        "inputs": inputs or None,
        "heal": None if heal is None else parse_healing(heal),
    }
    base = Recipe() if recipe is None else Recipe.read(recipe)
    wanted = replace(base, **{name: value for name, value in given.items() if value is not None})
    _check(wanted)
    folder = output if output is not None else Path(f"{model_name(wanted.model)}-{wanted.backend}")
    return _compile(wanted, folder, allow_pickle, heal_folder, shared)


def _check(recipe: Recipe) -> None:
    from compiler.budget.limits import check_budget

    check_budget(recipe.budget)
    if not recipe.model:
        raise UsageError("no MODEL is given", "See: compile --help")
    if recipe.max_drop is not None and not 0.0 <= recipe.max_drop <= 1.0:
        hint = "0.01 lets outputs lose one hundredth of cosine or agreement."
        raise UsageError(f"--max-drop {recipe.max_drop:g} is not from 0 to 1", hint)


def _compile(recipe: Recipe, folder: Path, allow_pickle: bool, heal_folder: Path | None, shared: Shared) -> Answer:
    import json

    from compiler.cli.loading import open_registry
    from compiler.cli.terminal import line

    with shared.terminal.working("starting"):
        from compiler.compile_model import compile_model
        from compiler.report.terminal_report import compile_summary

        registry = open_registry(shared)
        result = compile_model(
            recipe,
            folder,
            registry=registry,
            allow_pickle=allow_pickle,
            heal_folder=heal_folder,
            progress=shared.terminal.progress,
        )
    document: dict[str, Any] = {"artifact": str(result.folder)}
    document |= json.loads((result.folder / REPORT_NAME).read_text(encoding="utf-8"))
    return Answer(document, shown=(line(str(result.folder)),), summary=tuple(compile_summary(document)))
