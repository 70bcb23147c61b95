"""The whole story: a model is captured, rewritten and grafted, judged, lowered and written as an artifact."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import CompilerError
from compiler.recipe import Recipe, build_passes, parse_passes, spec_of
from compiler.target import Target

if TYPE_CHECKING:
    from compiler.backend import Lowered
    from compiler.evidence import Evidence
    from compiler.pipeline import PassRecord
    from compiler.program import Program
    from compiler.registry import Registry


@dataclass(frozen=True)
class CompileResult:
    """What a compile gave: the finished Program, the evidence before and after every pass, the artifact's folder."""

    recipe: Recipe
    program: Program
    lowered: Lowered
    before: Evidence
    records: tuple[PassRecord, ...]
    data_name: str
    data_shipped: bool
    sample_count: int
    folder: Path
    artifact_bytes: int
    seconds: float
    peak_memory_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def evidence(self) -> Evidence:
        """The evidence after the last pass."""
        return self.records[-1].evidence if self.records else self.before


def compile_model(
    recipe: Recipe,
    folder: Path,
    *,
    registry: Registry | None = None,
    allow_pickle: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> CompileResult:
    """Compile `recipe.model` as the recipe says and write the artifact to `folder`.

    Raises CompilerError for what the user can mend; then nothing has been written and an artifact that stood in
    `folder` is whole.
    """
    started = time.perf_counter()
    from compiler.artifact import check_output_folder, write_artifact
    from compiler.evidence.cost import peak_memory_bytes
    from compiler.evidence.data import load_dataset
    from compiler.frontends import LoadOptions, load_model
    from compiler.pipeline import Pipeline
    from compiler.registry import Registry
    from compiler.rewriting import PassContext

    registry = registry or Registry()
    target = Target.parse(recipe.target)
    backend = registry.backend(recipe.backend)
    specs = recipe.passes if recipe.passes is not None else parse_passes(backend.default_pipeline(target))
    passes = build_passes(specs, registry.passes(), registry.pipelines())
    check_output_folder(folder)
    _seed_everything(recipe.seed)

    progress("capturing the model")
    options = LoadOptions(inputs=recipe.inputs, allow_pickle=allow_pickle)
    program = load_model(recipe.model, options, registry.frontends().values())
    refusal = backend.refuses(program, target)
    if refusal is not None:
        raise CompilerError(f"lowering for {target} with {backend.name}", refusal, "See: compile backends")

    progress("reading data")
    data = load_dataset(recipe.data, program, recipe.seed)
    context = PassContext(target, data, recipe.max_drop, recipe.seed, progress=progress)
    probes = [probe() for probe in registry.probes().values()]
    pipeline = Pipeline(passes, context, registry.manager.hook, probes)
    reference = program
    program, before, records = pipeline.run(program)

    with tempfile.TemporaryDirectory(prefix="regraft-") as scratch:
        progress(f"lowering with {backend.name}")
        payload = Path(scratch) / "payload"
        payload.mkdir()
        lowered = backend.lower(program, target, payload)
        recipe = replace(recipe, passes=tuple(spec_of(one) for one in passes))
        result = CompileResult(
            recipe=recipe,
            program=program,
            lowered=lowered,
            before=before,
            records=tuple(records),
            data_name=data.name,
            data_shipped=data.shipped,
            sample_count=data.scoring_count,
            folder=folder,
            artifact_bytes=0,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(),
            notes=tuple(program.notes),
        )
        progress("writing the artifact")
        result = write_artifact(result, payload, reference=reference, started=started)
    registry.manager.hook.artifact_built(folder=folder)
    return result


def _seed_everything(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
