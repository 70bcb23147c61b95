"""What a whole model uses, as it is and with a mix in it: bytes and seconds as lowered on trial, FLOPs of its graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.budget.chosen_mix import ChosenMix, Key
from compiler.budget.site_copies import typical_inputs
from compiler.evidence.cost import float32_bytes, flops, weight_bytes
from compiler.evidence.payload import LARGE_BYTES, LONGEST_SECONDS
from compiler.evidence.trial_lowering import lowered_on_trial
from compiler.evidence.turns import alternating_seconds
from compiler.grafting import put_in
from compiler.sites import Refusal

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.rewriting import PassContext, Replacement

ROUNDS = 100
"""Turns that short models take beside each other: a limit is held by their ratio, which a busy machine spreads."""


class WholeModel:
    """A Program that is to be given a mix of stand-ins."""

    def __init__(self, program: Program, context: PassContext, *, timed: bool) -> None:
        """Lowers it once. What is too large to be lowered twice for its size alone counts as its weights."""
        assert context.backend is not None
        self._program, self._context, self._backend = program, context, context.backend
        self._flops = flops(program)
        self._float32 = context.captured_bytes or float32_bytes(program)
        self._bytes, self._seconds = weight_bytes(program), 0.0
        self._inputs = typical_inputs(program, context.data) if timed else ()
        self._call: Callable[[], Any] = lambda: None
        if timed or self._bytes < LARGE_BYTES:
            context.progress("budget: lowering the model as it is, on trial")
            with lowered_on_trial(program, self._backend, context.target) as trial:
                self._bytes = trial.bytes
                if timed:
                    self._call = trial.call(self._inputs)
                    (seconds,) = _seconds({"as it is": self._call})
                    self._seconds = statistics.median(seconds)

    def amount(self, quantity: str) -> float:
        """What a share is of: weights in float32, FLOPs, seconds."""
        return {"size": float(self._float32), "flops": float(self._flops), "latency": self._seconds}[quantity]

    def unchanged(self, quantity: str) -> float:
        """What the model uses as it is: bytes of its payload, FLOPs, seconds."""
        return {"size": float(self._bytes), "flops": float(self._flops), "latency": self._seconds}[quantity]

    def of_mix(self, made: Mapping[Key, Replacement | Refusal], quantities: Sequence[str]) -> list[float]:
        """What the model uses with these stand-ins in it; seconds beside those of the model as it is, run in turns."""
        program = put_in(ChosenMix(made), self._program, self._context)
        found = {"flops": float(flops(program))}
        if "size" in quantities or "latency" in quantities:
            with lowered_on_trial(program, self._backend, self._context.target) as trial:
                found["size"] = float(trial.bytes)
                if "latency" in quantities:
                    turns = _seconds({"as it is": self._call, "mix": trial.call(self._inputs)})
                    shares = [ours / theirs for theirs, ours in zip(*turns, strict=True)]
                    found["latency"] = self._seconds * statistics.median(shares)
        return [found[quantity] for quantity in quantities]


def _seconds(calls: Mapping[str, Callable[[], Any]]) -> list[list[float]]:
    return list(alternating_seconds(calls, ROUNDS, LONGEST_SECONDS).values())
