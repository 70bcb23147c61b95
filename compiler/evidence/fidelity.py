"""Output fidelity: the outputs of a Program against those of the captured model, on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.evidence import Fidelity
from compiler.evidence.cosines import row_cosines
from compiler.evidence.language import Predictions, is_language_model

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program

CHOOSING_ROLES = ("classifier", "causal-lm", "seq2seq")
MAP_RANK = 4


Reference = Sequence[Tensor] | Predictions
"""What other Programs are compared with: outputs, or what a language model foretells."""


def reference_outputs(program: Program, batches: Sequence[tuple[Tensor, ...]]) -> Reference:
    """The main output of `program` for every batch: the first floating-point one. Of a language model its predictions,
    since outputs as wide as a vocabulary would not fit in memory.
    """
    outputs = main_outputs(program, batches)
    return Predictions(program, batches, outputs) if is_language_model(program) and batches else list(outputs)


def main_outputs(program: Program, batches: Sequence[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """The main output for one batch after the other, in float32."""
    index = main_output(program)
    return (program.run(*program.complete(batch))[index].float() for batch in batches)


def main_output(program: Program) -> int:
    """Position of the output that evidence is taken on: the first of floating-point dtype, else the first."""
    for index, spec in enumerate(program.outputs):
        if spec.dtype.startswith(("float", "bfloat")):
            return index
    return 0


def measure_fidelity(
    program: Program, reference: Reference, data: Dataset, batches: Sequence[tuple[Tensor, ...]]
) -> Fidelity:
    """Compare `program` with `reference`, what `reference_outputs` gave for the same `batches`."""
    return compare_with(reference, main_outputs(program, batches), data, batches, program.role)


def compare_with(
    reference: Reference,
    outputs: Iterable[Tensor],
    data: Dataset,
    batches: Sequence[tuple[Tensor, ...]],
    role: str,
) -> Fidelity:
    """Fidelity to `reference` of the main outputs of something that ran on the same `batches`."""
    if isinstance(reference, Predictions):
        return reference.compare(outputs)
    masks = [data.row_mask(batch, output) for batch, output in zip(batches, reference, strict=True)]
    return compare_outputs(list(outputs), reference, masks, role)


def compare_outputs(
    found: Sequence[Tensor], reference: Sequence[Tensor], masks: Sequence[Tensor | None], role: str
) -> Fidelity:
    """Fidelity of `found` to `reference`; `masks` (bool, one a row, or None) leave padding out.

    A row is what the last dim holds; of maps [batch, channels, height, width] it is a whole sample. Where a row would
    be one number, whose cosine says only its sign, all numbers together are the row.
    """
    rows = [
        (_rows(ours, mask), _rows(theirs, mask)) for ours, theirs, mask in zip(found, reference, masks, strict=True)
    ]
    if all(theirs.shape[1] == 1 for _, theirs in rows):
        rows = [(torch.cat([ours for ours, _ in rows]).T, torch.cat([theirs for _, theirs in rows]).T)]
    cosines = torch.cat([row_cosines(ours, theirs) for ours, theirs in rows])
    top1 = neighbours = None
    if role in CHOOSING_ROLES:
        top1 = float(torch.cat([ours.argmax(-1) == theirs.argmax(-1) for ours, theirs in rows]).double().mean())
    elif role == "encoder":
        found_samples = torch.cat([_pooled(value, mask) for value, mask in zip(found, masks, strict=True)])
        reference_samples = torch.cat([_pooled(value, mask) for value, mask in zip(reference, masks, strict=True)])
        neighbours = neighbour_agreement(found_samples, reference_samples)
    return Fidelity(
        mean_cosine=float(cosines.mean()),
        worst_cosine=float(cosines.min()),
        largest_error=max((float((ours - theirs).abs().max()) for ours, theirs in rows if theirs.numel()), default=0.0),
        row_count=len(cosines),
        top1_agreement=top1,
        neighbour_agreement=neighbours,
    )


def neighbour_agreement(left: Tensor, right: Tensor) -> float | None:
    """Share of samples [samples, width] whose nearest other sample by cosine is the same in both sets."""
    if len(left) < 3:
        return None
    return float((_nearest(left) == _nearest(right)).double().mean())


def _nearest(samples: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(samples.double(), dim=-1)
    similarity = unit @ unit.T
    return similarity.fill_diagonal_(-2.0).argmax(-1)


def _rows(value: Tensor, mask: Tensor | None) -> Tensor:
    if value.dim() >= MAP_RANK:
        return value.flatten(1)
    rows = value.reshape(-1, value.shape[-1]) if value.dim() > 1 else value.reshape(-1, 1)
    return rows[mask.reshape(-1)] if mask is not None else rows


def _pooled(value: Tensor, mask: Tensor | None) -> Tensor:
    if value.dim() <= 2:
        return value.reshape(len(value), -1)
    if mask is None:
        return value.flatten(1, -2).mean(1)
    weights = mask.unsqueeze(-1).to(value.dtype)
    return (value * weights).sum(1) / weights.sum(1).clamp(min=1)
