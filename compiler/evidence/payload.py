"""Evidence on the lowered payload itself: its outputs against the captured model's, and its latency against eager."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compiler.evidence import Fidelity
from compiler.evidence.cost import weight_bytes
from compiler.evidence.fidelity import Reference, compare_with, main_output
from compiler.evidence.random_inputs import example_batch
from compiler.evidence.turns import alternating_seconds
from compiler.runtime.bench import Spread

if TYPE_CHECKING:
    from compiler.evidence.data import Batch, Dataset
    from compiler.program import Program
    from compiler.runtime.session import Session

TYPICAL_SIZES = {"batch": 1, "sequence": 128}
ROUND_COUNT = 15
LONGEST_SECONDS = 6.0
"""A slow model gets fewer rounds."""
LARGE_BYTES = 2**31
"""Float weights that are not held in memory beside the artifact, only to time the two in turns."""

TimedRuns = tuple[tuple[Tensor, ...], list[float]]
"""What a model was run on, and the seconds of each run."""


@dataclass(frozen=True)
class PayloadEvidence:
    """What the artifact itself is worth.

    `eager_seconds` is the latency of the captured model in torch, `payload_seconds` that of the artifact, on inputs of
    `shapes`, in rounds that alternate the two; a large model is timed by itself before.
    """

    fidelity: Fidelity
    eager_seconds: Spread
    payload_seconds: Spread
    shapes: dict[str, tuple[int, ...]]
    rounds: int


def measure_payload(
    session: Session,
    program: Program,
    captured: Program,
    reference: Reference,
    data: Dataset,
    timed: TimedRuns | None = None,
) -> PayloadEvidence:
    """Run `session`, which `program` was lowered to, on the scoring data against `reference`; time it against the model
    as captured, in turns, or against what `time_large_model` found before.
    """
    if timed is None:
        batch = typical_batch(captured, data)
        calls = {"eager": lambda: captured.run(*batch), "payload": lambda: run_session(session, program, batch)}
        eager, payload = alternating_seconds(calls, ROUND_COUNT, LONGEST_SECONDS).values()
    else:
        batch, eager = timed
        payload = _repeat(lambda: run_session(session, program, batch))
    return PayloadEvidence(
        fidelity=_fidelity(session, program, reference, data),
        eager_seconds=Spread.of(eager),
        payload_seconds=Spread.of(payload),
        shapes={spec.name: tuple(tensor.shape) for spec, tensor in zip(captured.inputs, batch, strict=True)},
        rounds=len(eager),
    )


def time_large_model(captured: Program, data: Dataset) -> TimedRuns | None:
    """Runs of a model that is too large to be in memory beside its artifact; None of one that is not."""
    if weight_bytes(captured) < LARGE_BYTES:
        return None
    batch = typical_batch(captured, data)
    return batch, _repeat(lambda: captured.run(*batch))


def run_session(session: Session, program: Program, batch: Batch) -> dict[str, Any]:
    """The outputs by name of an opened artifact of `program` for a batch of data."""
    inputs = zip(program.inputs, program.complete(batch), strict=True)
    return session.run({spec.name: tensor.numpy() for spec, tensor in inputs})


def typical_batch(program: Program, data: Dataset) -> Batch:
    """A sample of the user's arrays; without any one of 128 tokens where the model reads tokens, or else one of the
    example inputs' sizes.
    """
    if data.scoring and not data.shipped and program.tokenizer is None:
        return data.scoring[0]
    sizes = {}
    for spec, tensor in zip(program.inputs, program.example_inputs, strict=True):
        for dim, size in zip(spec.shape, tensor.shape, strict=True):
            if not isinstance(dim, int):
                sizes[dim.name] = dim.range.nearest(TYPICAL_SIZES.get(dim.name, size))
    batch = example_batch(program, sizes, seed=0)
    try:
        program.run(*batch)
    except (RuntimeError, ValueError, IndexError):  # sizes that the model relates in a way the specs do not say
        return data.scoring[0] if data.scoring else program.example_inputs
    return batch


def _fidelity(session: Session, program: Program, reference: Reference, data: Dataset) -> Fidelity:
    name = program.outputs[main_output(program)].name
    found = (torch.from_numpy(run_session(session, program, batch)[name]).float() for batch in data.scoring)
    return compare_with(reference, found, data, data.scoring, program.role)


def _repeat(call: Callable[[], Any]) -> list[float]:
    return alternating_seconds({"one": call}, ROUND_COUNT, LONGEST_SECONDS)["one"]
