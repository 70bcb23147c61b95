"""report.json: everything that a compile did and measured, as plain values.

    format, regraft     "regraft report 1", and the version that wrote it
    model               source, role, inputs, outputs (each as text)
    backend, target     what it was lowered with, and for what
    runtime             name of the engine that opens it, and what it requires
    data                name, sample_count, unit (what a sample is), shipped (true: the user gave none)
    before, after       weight_bytes, flops, bytes_by_kind, probes (scores by name), fidelity of the Program to what was
                        captured; after also payload_bytes
    payload             fidelity of the lowered payload itself; null where it could not be run
    max_drop            the budget, or null
    allow_simulated     whether formats without a kernel were let in
    passes              in order: name, text, make, changed_count, states (count by state), evidence, notes, ranking,
                        healing (null, or what was trained: the fields of compiler/healing/record.py), mix (null, or
                        what a budget chose: the fields of compiler/budget/record.py)
    passes.ranking      null, or why a graft took the sites it took: rank, error (what errors are of), data, seconds,
                        reused, and sites in graph order: site, replaced, score (the sum of parts), parts by name,
                        error and recall (nats lost by probe) as measured; null where outputs were broken
    sites               one a pass and site: pass, site, kind, state, note, drop (what it costs alone, or null);
                        a state is grafted, softened, returned or refused
    latency             shapes, rounds, sides (the artifact first): name, median, lower, upper; null where not timed
    kernels             operators of the lowered graph by name
    recipe              the TOML that makes this artifact again
    seconds, peak_memory_bytes, notes

Bytes, seconds and FLOPs (a multiply-add counts as two) are plain numbers. A fidelity compares with the captured
model: mean_cosine, worst_cosine, largest_error, row_count, top1_agreement, neighbour_agreement and drop (what
--max-drop bounds); of language models also perplexity, perplexity_ratio and kl_divergence (nats a token). What the role
has no notion of is null.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from compiler import __version__
from compiler.report.healing_text import healing_text
from compiler.report.weight_kinds import weight_bytes_by_kind

if TYPE_CHECKING:
    from compiler.compile_model import CompileResult
    from compiler.evidence import Fidelity
    from compiler.evidence.payload import PayloadEvidence
    from compiler.pipeline import PassRecord

FORMAT = "regraft report 1"


def report_document(result: CompileResult) -> dict[str, Any]:
    """The report as plain values that JSON can hold."""
    captured, after, data, payload = result.captured, result.evidence, result.data, result.payload
    document = {
        "format": FORMAT,
        "regraft": __version__,
        "model": {
            "source": captured.source,
            "role": captured.role,
            "inputs": list(map(str, captured.inputs)),
            "outputs": list(map(str, captured.outputs)),
        },
        "backend": result.recipe.backend,
        "target": result.recipe.target,
        "runtime": {"name": result.lowered.runtime, "requires": dict(result.lowered.requires)},
        "data": {"name": data.name, "shipped": data.shipped, "sample_count": data.scoring_count, "unit": data.unit},
        "before": {
            "weight_bytes": result.before.weight_bytes,
            "flops": result.before.flops,
            "bytes_by_kind": weight_bytes_by_kind(captured),
            "probes": result.before.probes,
            "fidelity": fidelity_document(result.before.fidelity),
        },
        "after": {
            "weight_bytes": after.weight_bytes,
            "flops": after.flops,
            "bytes_by_kind": weight_bytes_by_kind(result.program),
            "payload_bytes": result.payload_bytes,
            "probes": after.probes,
            "fidelity": fidelity_document(after.fidelity),
        },
        "payload": fidelity_document(payload.fidelity if payload else None),
        "max_drop": result.recipe.max_drop,
        "allow_simulated": result.recipe.allow_simulated,
        "passes": [_pass_document(record) for record in result.records],
        "sites": [site for record in result.records for site in _site_documents(record)],
        "latency": None if payload is None else _latency_document(payload),
        "kernels": dict(result.lowered.kernels),
        "recipe": result.recipe.text(),
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "notes": [*result.program.notes, *result.lowered.notes, *_carried_note(result), *budget_notes(result)],
    }
    plain: dict[str, Any] = _plain(document)
    return plain


def document_text(document: dict[str, Any]) -> str:
    """JSON with one line for each top-level entry, site and pass: small, and still readable in an editor."""
    lines = []
    for key, value in document.items():
        if key in ("passes", "sites") and value:
            inner = ",\n".join(f"    {json.dumps(item)}" for item in value)
            lines.append(f"  {json.dumps(key)}: [\n{inner}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def fidelity_document(fidelity: Fidelity | None) -> dict[str, Any] | None:
    """A fidelity with its drop."""
    return None if fidelity is None else {**vars(fidelity), "drop": fidelity.drop}


def _latency_document(payload: PayloadEvidence) -> dict[str, Any]:
    sides = (("artifact", payload.payload_seconds), ("captured model in torch", payload.eager_seconds))
    return {
        "shapes": payload.shapes,
        "rounds": payload.rounds,
        "sides": [{"name": name, **vars(spread)} for name, spread in sides],
    }


def _carried_note(result: CompileResult) -> tuple[str, ...]:
    if not any(record.evidence.carried for record in result.records):
        return ()
    return ("rewrites before the last were checked to be exact: their scores are those before them, not taken anew",)


def budget_notes(result: CompileResult) -> list[str]:
    """Limits that are no longer held, or no longer measured: --max-drop gives sites back whatever that takes."""
    notes = []
    for record in result.records:
        given_back = sum(outcome.state in ("returned", "softened") for outcome in record.result.outcomes)
        for limit in () if record.result.mix is None else record.result.mix.limits:
            if limit.quantity == "size" and result.payload_bytes > limit.allowed:
                back = "--max-drop gave back too much" if given_back else "what comes after it added to it"
                notes.append(
                    f"{limit.text} is not held: {back}, and the payload has {result.payload_bytes:,} bytes "
                    f"of the {limit.allowed:,.0f} allowed"
                )
            elif limit.quantity != "size" and given_back:
                notes.append(
                    f"{limit.text} was held before --max-drop gave back {given_back} sites, and may not be now"
                )
    return notes


def _pass_document(record: PassRecord) -> dict[str, Any]:
    states = Counter(outcome.state for outcome in record.result.outcomes)
    if not record.result.outcomes and record.result.refusals:
        states["refused"] = len(record.result.refusals)
    return {
        "name": record.name,
        "text": record.text,
        "make": record.make,
        "changed_count": len(record.result.changed),
        "states": dict(states),
        "evidence": record.evidence.to_json(),
        "notes": [*record.result.notes, *_healing_note(record)],
        "healing": None if record.result.healing is None else record.result.healing.to_json(),
        "ranking": None if record.result.ranking is None else record.result.ranking.to_json(),
        "mix": None if record.result.mix is None else record.result.mix.to_json(),
    }


def _healing_note(record: PassRecord) -> tuple[str, ...]:
    return () if record.result.healing is None else (healing_text(record.result.healing.to_json()),)


def _site_documents(record: PassRecord) -> list[dict[str, Any]]:
    found = [
        {"pass": record.name, "site": o.site, "kind": o.kind, "state": o.state, "note": o.note, "drop": o.drop}
        for o in record.result.outcomes
    ]
    if found:
        return found
    return [
        {
            "pass": record.name,
            "site": refusal.name or refusal.node or "",
            "kind": refusal.kind,
            "state": "refused",
            "note": refusal.reason,
            "drop": None,
        }
        for refusal in record.result.refusals
    ]


def _plain(value: Any) -> Any:
    """Without what JSON has no word for: a number that is not finite becomes null, an unknown object its text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
