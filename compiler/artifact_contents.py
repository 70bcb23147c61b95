"""What an artifact says of the Program that it was made from: a bridge from Program to the torch-free manifest."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.artifact import ArtifactContents
from compiler.generation_record import generation_record
from compiler.model_name import model_name
from compiler.ops.quantized_linear import inputs_rounded
from compiler.pipeline import relative_error
from compiler.program import Dimension, TensorSpec
from compiler.runtime.manifest import GoldenRecord, Manifest, PassRecord, RuntimeRecord, Scalar, TensorRecord
from compiler.states import KEPT_POSITIONS

if TYPE_CHECKING:
    from compiler.backend import Lowered
    from compiler.compile_model import CompileResult
    from compiler.evidence.data import Batch, Dataset
    from compiler.program import Program
    from compiler.recipe import Recipe
    from compiler.target import Target

GOLDEN_SAMPLE_COUNT = 2
GOLDEN_TOKEN_COUNT = 16
ROUNDING_MARGIN, MOST_ROUNDING = 1.5, 0.2
"""Of what rounding inputs moves outputs by: two sides that round differently are the root of 2 as far apart."""
RECORDED_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy")


def artifact_contents(
    recipe: Recipe, program: Program, data: Dataset, lowered: Lowered, target: Target
) -> ArtifactContents:
    """Everything that goes into the artifact beside its payload and its reports."""
    golden = golden_batch(program, data)
    reference, tolerance = _reference(program, golden, lowered)
    return ArtifactContents(
        name=model_name(recipe.model),
        role=program.role,
        backend=recipe.backend,
        target=str(target),
        inputs=tuple(_record(spec) for spec in program.inputs),
        outputs=tuple(_record(spec) for spec in program.outputs),
        dimensions={
            dim.name: dim.range
            for spec in (*program.inputs, *program.outputs)
            for dim in spec.shape
            if isinstance(dim, Dimension)
        },
        golden_inputs={spec.name: tensor.numpy() for spec, tensor in zip(program.inputs, golden, strict=True)},
        reference={spec.name: tensor.numpy() for spec, tensor in zip(program.outputs, reference, strict=True)},
        tolerance=tolerance,
        recipe=recipe.text(),
        passes=tuple(PassRecord(spec.name, _scalars(spec.options)) for spec in recipe.passes or ()),
        tokenizer=program.tokenizer,
        generation=generation_record(program),
        versions=_versions(),
        notes=tuple(program.notes),
        runs_here=target.is_host,
    )


def trial_manifest(program: Program, lowered: Lowered, target: Target) -> Manifest:
    """As much of a manifest as an engine needs to open what was lowered; it is never written."""
    return Manifest(
        regraft="",
        name="",
        role=program.role,
        backend="",
        target=str(target),
        inputs=tuple(_record(spec) for spec in program.inputs),
        outputs=tuple(_record(spec) for spec in program.outputs),
        dimensions={},
        runtime=RuntimeRecord(
            lowered.runtime, lowered.entry, dict(lowered.requires), lowered.instructions, dict(lowered.options)
        ),
        golden=GoldenRecord("", lowered.tolerance),
        files={},
        generation=generation_record(program),
    )


def _reference(program: Program, golden: Batch, lowered: Lowered) -> tuple[Sequence[Tensor], float]:
    """What the payload is held to, and how nearly.

    Where kernels round inputs of products in blocks, so does the reference; a difference of 1e-7 still moves some input
    to the next of 255 steps, and later layers carry that on, up to what rounding itself does. So that is measured here.
    """
    exact = program.run(*golden)
    if not lowered.rounds_inputs:
        return exact, lowered.tolerance
    with inputs_rounded():
        rounded = program.run(*golden)
    moved = max(relative_error(one, other) for one, other in zip(rounded, exact, strict=True))
    return rounded, max(lowered.tolerance, min(ROUNDING_MARGIN * moved, MOST_ROUNDING))


def golden_batch(program: Program, data: Dataset) -> Batch:
    """A few samples of the scoring data, or the example inputs where samples cannot be told apart."""
    batch = data.scoring[0] if data.scoring else program.example_inputs
    first_dims = {spec.shape[0] if spec.shape else None for spec in program.inputs[: len(batch)]}
    by_sample = len(first_dims) == 1 and isinstance(next(iter(first_dims)), Dimension)
    if program.states:
        return golden_prompt(program, batch)
    return tuple(tensor[:GOLDEN_SAMPLE_COUNT].contiguous() for tensor in batch) if by_sample else batch


def golden_prompt(program: Program, batch: Batch) -> Batch:
    """The start of one text, without padding, and the logits of its last token alone: a vocabulary is large."""
    count = min(GOLDEN_TOKEN_COUNT, int(batch[1][0].sum()) if len(batch) > 1 else batch[0].shape[1])
    inputs = program.complete(tuple(tensor[:1, :count].contiguous() for tensor in batch[:2]))
    last = torch.tensor([count - 1])
    return tuple(
        last if spec.name == KEPT_POSITIONS else tensor for spec, tensor in zip(program.inputs, inputs, strict=True)
    )


def evidence_summary(result: CompileResult) -> dict[str, Scalar]:
    """The headline numbers, flat, for the manifest."""
    summary: dict[str, Scalar] = {
        "data": result.data.name,
        "samples": result.data.scoring_count,
        "weight_bytes_before": result.before.weight_bytes,
        "weight_bytes_after": result.evidence.weight_bytes,
    }
    fidelity = result.payload.fidelity if result.payload else result.evidence.fidelity
    if fidelity is not None:
        summary |= {
            name: value
            for name, value in vars(fidelity).items()
            if value is not None and name not in ("largest_error", "row_count")
        }
    for record in result.records:
        if (healing := record.result.healing) is not None:
            summary |= {
                "healing_seconds": healing.seconds,
                "healing_tokens": healing.tokens,
                "healing_loss_before": healing.start,
                "healing_loss_after": healing.end,
            }
    summary |= {f"probe_{name.replace('-', '_')}": score for name, score in result.evidence.probes.items()}
    return {name: value for name, value in summary.items() if not isinstance(value, float) or math.isfinite(value)}


def files_bytes(folder: Path, names: Iterable[str]) -> int:
    """Bytes of the named files together."""
    return sum((folder / name).stat().st_size for name in names)


def _record(spec: TensorSpec) -> TensorRecord:
    return TensorRecord(spec.name, spec.dtype, tuple(dim if isinstance(dim, int) else dim.name for dim in spec.shape))


def _scalars(options: object) -> dict[str, Scalar]:
    assert isinstance(options, dict)
    return {key: "+".join(map(str, value)) if isinstance(value, tuple) else value for key, value in options.items()}


def _versions() -> dict[str, str]:
    installed = {}
    for name in RECORDED_PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
