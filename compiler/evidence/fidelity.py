"""Output fidelity: the outputs of a Program against those of the captured model, on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.evidence import Fidelity

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program

CHOOSING_ROLES = ("classifier", "causal-lm", "seq2seq")
MAP_RANK = 4


def reference_outputs(program: Program, batches: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """The main output of `program` for every batch: the first floating-point one."""
    index = main_output(program)
    return [program.run(*batch)[index].float() for batch in batches]


def main_output(program: Program) -> int:
    """Position of the output that evidence is taken on: the first of floating-point dtype, else the first."""
    for index, spec in enumerate(program.outputs):
        if spec.dtype.startswith(("float", "bfloat")):
            return index
    return 0


def measure_fidelity(
    program: Program, reference: Sequence[Tensor], data: Dataset, batches: Sequence[tuple[Tensor, ...]]
) -> Fidelity:
    """Compare `program` with `reference` (one tensor a batch, as `reference_outputs` gives) on `batches`."""
    found = reference_outputs(program, batches)
    masks = [data.row_mask(batch, output) for batch, output in zip(batches, reference, strict=True)]
    return compare_outputs(found, reference, masks, program.role)


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


def row_cosines(left: Tensor, right: Tensor) -> Tensor:
    """Cosine of each pair of rows, [rows], in float64. Two zero rows are equal; what is not finite counts as -1."""
    left, right = left.double(), right.double()
    norms = left.norm(dim=-1) * right.norm(dim=-1)
    cosines = (left * right).sum(-1) / norms
    cosines = torch.where(norms == 0, (left == right).all(-1).double(), cosines)
    return torch.where(torch.isfinite(cosines), cosines, -1.0)


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
