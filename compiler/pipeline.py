"""Runs named passes in order: run, check, take evidence, keep or give back, record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compiler.errors import CompilerError
from compiler.evidence import Evidence, Probe
from compiler.evidence.cost import float32_bytes, flops, peak_memory_bytes, weight_bytes
from compiler.evidence.fidelity import Reference, measure_fidelity, reference_outputs
from compiler.grafting import apply_graft
from compiler.program import Program, TrailEntry
from compiler.recipe import spec_of
from compiler.rewriting import Graft, Pass, PassContext, PassResult, Rewrite, option_values
from compiler.states import MASK

TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest error of a rewrite relative to the largest output, by dtype of the output: rounding in another order, no
more.
"""

NUMBERS_AT_ONCE = 2**20
"""Of two outputs that are compared: logits are large, and six copies of them in float64 larger."""


@dataclass(frozen=True)
class PassRecord:
    """One pass of a pipeline as the report shows it."""

    name: str
    options: dict[str, Any]
    make: str
    result: PassResult
    evidence: Evidence

    @property
    def text(self) -> str:
        """The pass as it is written in --passes, with all options."""
        from compiler.recipe import PassSpec

        return str(PassSpec(self.name, self.options))


class Pipeline:
    """Passes in order, over one Program and one set of data.

    `hooks` is pluggy's relay to the plugins' before_pass and after_pass. `reference` is what the captured Program gave
    on the scoring data, once `run` has begun.
    """

    def __init__(
        self, passes: Sequence[Pass], context: PassContext, hooks: Any = None, probes: Sequence[Probe] = ()
    ) -> None:
        self.passes = list(passes)
        self.context = context
        self.hooks = hooks
        self.probes = list(probes)
        self.reference: Reference = ()

    def run(self, program: Program) -> tuple[Program, Evidence, list[PassRecord]]:
        """The Program after all passes, the evidence before the first, a record a pass. `program` is left alone."""
        self.context.progress("running the captured model")
        self.reference = reference = reference_outputs(program, self.context.data.scoring)
        self.context = replace(self.context, captured_bytes=float32_bytes(program))
        before = self.take_evidence(program, reference, time.perf_counter(), "the captured model")
        records: list[PassRecord] = []
        evidence = before
        for one in self.passes:
            started = time.perf_counter()
            self.context.progress(one.name)
            if self.hooks is not None:
                self.hooks.before_pass(name=one.name, program=program, context=self.context)
            program, result = self._run_one(one, program, reference, [record.name for record in records])
            is_last = one is self.passes[-1]
            if (result.changed and (isinstance(one, Graft) or is_last)) or (is_last and evidence.carried):
                evidence = self.take_evidence(program, reference, started, f"what {one.name} gives")
            elif result.changed:
                evidence = self.carry_evidence(evidence, program, started)
            else:
                evidence = replace(
                    evidence, seconds=time.perf_counter() - started, peak_memory_bytes=peak_memory_bytes()
                )
            result = replace(result, evidence=evidence)
            records.append(PassRecord(one.name, option_values(one), make_of(one), result, evidence))
            program.trail.append(TrailEntry(one.name, dict(spec_of(one).options), result.changed))
            if self.hooks is not None:
                self.hooks.after_pass(name=one.name, program=program, result=result)
        return program, before, records

    def take_evidence(self, program: Program, reference: Reference, started: float, what: str) -> Evidence:
        """Fidelity to `reference` on the scoring data, cost, and the scores of every probe that applies."""
        data, progress = self.context.data, self.context.progress
        progress(f"scoring {what}")
        fidelity = measure_fidelity(program, reference, data, data.scoring) if data.scoring else None
        scores = {}
        for probe in self.probes:
            if probe.applies(program):
                progress(f"scoring {what}: {probe.name}")
                scores[probe.name] = probe.score(program, self.context.seed)
        return Evidence(
            fidelity=fidelity,
            weight_bytes=weight_bytes(program),
            flops=flops(program),
            probes=scores,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(),
        )

    def carry_evidence(self, evidence: Evidence, program: Program, started: float) -> Evidence:
        """Evidence after a rewrite that was proven exact: scores are those before it, cost is measured."""
        return replace(
            evidence,
            weight_bytes=weight_bytes(program),
            flops=flops(program),
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_memory_bytes(),
            carried=True,
        )

    def _run_one(self, one: Pass, program: Program, reference: Reference, ran: list[str]) -> tuple[Program, PassResult]:
        if isinstance(one, Graft):
            context = self._with_time_for(one)
            graft, mix = one.planned(program, context)
            program, result = apply_graft(graft, program, reference, context)
            return program, replace(result, mix=mix)
        assert isinstance(one, Rewrite)
        after = program.copy()
        result = one.rewrite(after, self.context)
        if one.whole_model and result.refusals:
            refusal = result.refusals[0]
            hint = "It takes the whole model or none of it: leave the pass out, or change the model there."
            raise CompilerError(f"running {one.name}", refusal.reason, hint, refusal.node)
        if not result.changed:
            return program, result
        after.refresh()
        check_exact(one.name, program, after, self.context, ran)
        return after, result

    def _with_time_for(self, graft: Graft) -> PassContext:
        """The context with the graft's share of the time for healing."""
        healing = self.context.healing
        weight = sum(one.healing_weight for one in self.passes if isinstance(one, Graft))
        if healing is None or weight == 0:
            return replace(self.context, healing=None)
        return replace(self.context, healing=healing.share(graft.healing_weight / weight))


def make_of(one: Pass | type[Pass]) -> str:
    """`graft` or `rewrite`."""
    cls = one if isinstance(one, type) else type(one)
    return "graft" if issubclass(cls, Graft) else "rewrite"


def check_exact(name: str, before: Program, after: Program, context: PassContext, ran: Sequence[str] = ()) -> float:
    """The largest relative error that rewrite `name` made, on the example inputs and on data of another size.

    Raises CompilerError when it is more than rounding.
    """
    worst = 0.0
    batches = [before.example_inputs, *context.data.calibration[:1]]
    for batch in batches:
        expected, found = before.run(*before.complete(batch)), after.run(*after.complete(batch))
        for spec, left, right in zip(before.outputs, expected, found, strict=not after.states):
            kept = tokens_that_count(before, after, batch, left)
            error = relative_error(right[kept], left[kept])
            allowed = context.tolerance if context.tolerance is not None else TOLERANCE.get(spec.dtype, 0.0)
            if not error <= allowed:
                earlier = f" after {', '.join(ran)}" if ran else ""
                problem = f"output {spec.name} moved by {error:.2g} (allowed for {spec.dtype}: {allowed:g}){earlier}"
                hint = f"The pass is at fault, not the model: leave {name} out and report it."
                raise CompilerError(f"checking that {name} is exact", problem, hint)
            worst = max(worst, error)
    return worst


def tokens_that_count(before: Program, after: Program, batch: Sequence[Tensor], output: Tensor) -> Any:
    """Where an output [batch, tokens, ...] is compared: everywhere, or without the padding that an incremental Program
    reads like any other token, since it keeps no mask of the past.
    """
    mask = next((one for spec, one in zip(before.inputs, batch, strict=False) if spec.name == MASK), None)
    became_incremental = bool(after.states) and not before.states
    return mask.bool() if became_incremental and mask is not None and output.shape[:2] == mask.shape else ...


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest expected magnitude; equal non-finite values do not count."""
    if found.shape != expected.shape:
        return float("inf")
    largest, scale = 0.0, 0.0
    halves = (torch.split(one.flatten(), NUMBERS_AT_ONCE) for one in (found, expected))
    parts = zip(*halves, strict=True)
    for left, right in ((one.double(), other.double()) for one, other in parts if other.numel()):
        same = (left == right) | (left.isnan() & right.isnan())
        difference = float(torch.where(same, 0.0, (left - right).abs()).max())
        if difference != difference:
            return float("inf")
        largest = max(largest, difference)
        finite = right[torch.isfinite(right)]
        scale = max(scale, float(finite.abs().max()) if finite.numel() else 0.0)
    return largest / max(scale, 1e-6)
