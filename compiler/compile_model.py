"""The whole story: a model is captured, rewritten and grafted, judged, lowered and written as an artifact."""

from __future__ import annotations

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
    from compiler.evidence.data import Dataset
    from compiler.evidence.payload import PayloadEvidence
    from compiler.pipeline import PassRecord
    from compiler.program import Program
    from compiler.registry import Registry
    from compiler.runtime.manifest import Manifest


@dataclass(frozen=True)
class CompileResult:
    """What a compile did, step by step; the reports are made from it.

    `recipe` has every option spelled out. `captured` is the Program before any pass, `program` the finished one,
    `before` the evidence on the captured one, `payload` that on the artifact itself (None where this machine cannot
    run it).
    """

    recipe: Recipe
    captured: Program
    program: Program
    lowered: Lowered
    data: Dataset
    before: Evidence
    records: tuple[PassRecord, ...]
    payload: PayloadEvidence | None
    folder: Path
    payload_bytes: int
    seconds: float
    peak_memory_bytes: int
    manifest: Manifest | None = None

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
    heal_folder: Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> CompileResult:
    """Compile `recipe.model` as the recipe says and write the artifact to `folder`.

    Healing keeps its work below `heal_folder`, or in the user's cache. Raises CompilerError for what the user can mend;
    then nothing has been written to `folder`, and an artifact that stood there is whole.
    """
    started = time.perf_counter()
    from compiler.artifact import ArtifactDraft, check_output_folder, staged_artifact
    from compiler.artifact_contents import artifact_contents, evidence_summary, files_bytes
    from compiler.budget.limits import check_budget
    from compiler.budget.mix import BudgetedMix
    from compiler.budget.passes import with_budget, with_mix
    from compiler.evidence.cost import peak_memory_bytes
    from compiler.evidence.data import load_dataset
    from compiler.evidence.payload import measure_payload, time_large_model
    from compiler.frontends import LoadOptions, load_model
    from compiler.healing.plan import TRAINING_TOKENS, HealingPlan
    from compiler.mapped_weights import release_memory
    from compiler.pipeline import Pipeline
    from compiler.registry import Registry
    from compiler.report import report_files
    from compiler.rewriting import Graft, PassContext

    # What the recipe says is checked before anything slow is done.
    registry = registry or Registry()
    target = Target.parse(recipe.target)
    backend = registry.backend(recipe.backend)
    specs = recipe.passes if recipe.passes is not None else parse_passes(backend.default_pipeline(target))
    known = registry.passes()
    if recipe.budget:
        check_budget(recipe.budget)
        specs = with_budget(specs, recipe.budget, known, registry.pipelines())
    passes = build_passes(specs, {**known, BudgetedMix.name: BudgetedMix}, registry.pipelines())
    for one in passes:
        one.check(registry)
    recipe = replace(recipe, passes=tuple(spec_of(one) for one in passes))
    check_output_folder(folder)

    progress("capturing the model")
    options = LoadOptions(inputs=recipe.inputs, allow_pickle=allow_pickle)
    captured = load_model(recipe.model, options, registry.frontends().values())
    refuse_if(backend.refuses(captured, target), f"lowering {captured.source} with {backend.name} for {target}")

    progress("reading data")
    healing = None if recipe.heal is None else HealingPlan(recipe.heal, heal_folder)
    data = load_dataset(recipe.data, captured, recipe.seed, TRAINING_TOKENS if healing else 0)
    probes = tuple(probe() for probe in registry.probes().values())
    context = PassContext(
        target, data, recipe.max_drop, recipe.seed, progress=progress, healing=healing, probes=probes,
        mixers=registry.mixers(), formats=registry.formats(), backend=backend, allow_simulated=recipe.allow_simulated,
        grafts={name: cls for name, cls in known.items() if issubclass(cls, Graft)},
    )  # fmt: skip
    pipeline = Pipeline(passes, context, registry.manager.hook, probes)
    timed = time_large_model(captured, data)
    program, before, records = pipeline.run(captured)
    recipe = with_mix(recipe, records)
    release_memory(captured.weights().values())

    with staged_artifact(folder) as staging:
        progress(f"lowering with {backend.name}")
        lowered = backend.lower(program, target, staging)
        draft = ArtifactDraft(staging, lowered, artifact_contents(recipe, program, data, lowered, target))
        progress("measuring the artifact")
        payload = None
        if draft.session is not None:
            payload = measure_payload(draft.session, program, captured, pipeline.reference, data, timed)
        result = CompileResult(
            recipe=recipe,
            captured=captured,
            program=program,
            lowered=lowered,
            data=data,
            before=before,
            records=tuple(records),
            payload=payload,
            folder=folder,
            payload_bytes=files_bytes(staging, lowered.files),
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(),
        )
        manifest = draft.finish(evidence_summary(result), report_files(result))
    registry.manager.hook.artifact_built(folder=folder)
    return replace(result, manifest=manifest)


def refuse_if(refusal: str | None, doing: str) -> None:
    """Raise the refusal of a backend as the user's error."""
    if refusal is not None:
        raise CompilerError(doing, refusal, "See what each backend serves with: compile backends")
