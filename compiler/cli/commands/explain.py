"""`compile explain`: what a pass would do to a model, site by site, writing nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, AllowPickle, DataPath, Inputs, Model, Shared

if TYPE_CHECKING:
    from rich.console import RenderableType

    from compiler.evidence.site_speed import SpeedMeter
    from compiler.program import Program
    from compiler.rewriting import Pass, PassContext, Rewrite


def explain(
    pass_: Annotated[str, Parameter(name="PASS", help="A pass with its options, as in --passes; or a pipeline.")],
    model: Model,
    *,
    after: Annotated[str, Parameter(help="Passes to run first.")] = "canonicalize",
    data: DataPath = None,
    no_speed: Annotated[bool, Parameter(help="Do not time what grafts propose beside what is there.")] = False,
    backend: Annotated[str, Parameter(help="What is timed. See: compile backends")] = "onnx_runtime",
    target: Annotated[str, Parameter(help="See: compile targets")] = "cpu",
    inputs: Inputs = (),
    allow_pickle: AllowPickle = False,
    shared: Shared = SHARED,
) -> Answer:
    """Say what a pass would do at each site of a model, or why not."""
    from compiler.cli.loading import after_passes, load, looking_context
    from compiler.evidence.site_speed import SpeedMeter
    from compiler.recipe import build_passes, parse_passes
    from compiler.target import Target

    with shared.terminal.working(f"explaining {pass_}"):
        loaded = load(model, shared, inputs, allow_pickle=allow_pickle)
        passes = build_passes(parse_passes(pass_), loaded.registry.passes(), loaded.registry.pipelines())
        first = "" if any(one.name == after for one in passes) else after
        context = looking_context(loaded, shared, data)
        program = after_passes(loaded, first, context)
        meter = None if no_speed else SpeedMeter(loaded.registry.backend(backend), Target.parse(target))
        documents = []
        for one in passes:
            program, document = _explain_pass(one, program, context, meter)
            documents.append(document)
    shown = [part for document in documents for part in _shown(document)]
    return Answer({"model": model, "after": first, "passes": documents}, tuple(shown))


def _explain_pass(
    one: Pass, program: Program, context: PassContext, meter: SpeedMeter | None
) -> tuple[Program, dict[str, Any]]:
    """The Program after a rewrite (a graft leaves it), and what the pass said."""
    from compiler.cli.proposal_documents import proposal_documents
    from compiler.pipeline import make_of
    from compiler.recipe import spec_of
    from compiler.rewriting import Graft, Rewrite

    document: dict[str, Any] = {"pass": str(spec_of(one)), "make": make_of(one)}
    if isinstance(one, Graft):
        document["backend"] = meter.name if meter else None
        return program, document | {"sites": proposal_documents(one, program, context, meter)}
    assert isinstance(one, Rewrite)
    after, changes = _rewritten(one, program, context)
    return after, document | changes


def _rewritten(rewrite: Rewrite, program: Program, context: PassContext) -> tuple[Program, dict[str, Any]]:
    from compiler.cli.loading import rewritten
    from compiler.cli.site_listing import refusal_documents
    from compiler.evidence.cost import weight_bytes

    after, result = rewritten(rewrite, program, context)
    document = {
        "changed": list(result.changed),
        "notes": list(result.notes),
        "refusals": refusal_documents(result.refusals),
        "nodes_before": len(program.graph.nodes),
        "nodes_after": len(after.graph.nodes),
        "bytes_before": weight_bytes(program),
        "bytes_after": weight_bytes(after),
    }
    return after, document


def _shown(document: dict[str, Any]) -> list[RenderableType]:
    from compiler.cli.proposal_documents import proposals_shown
    from compiler.cli.terminal import line, table

    if document["make"] == "graft":
        return proposals_shown(document)
    shown: list[RenderableType] = [
        line(f"{document['pass']} (rewrite): {len(document['changed'])} changes, "
             f"{document['nodes_before']} nodes before, {document['nodes_after']} after")
    ]  # fmt: skip
    shown += [line(f"  {name}") for name in document["changed"]]
    shown += [line(f"  note: {note}") for note in document["notes"]]
    refusals = [(one["name"] or one["node"] or "", one["reason"]) for one in document["refusals"]]
    return [*shown, table(("left alone", "why"), refusals)] if refusals else shown
