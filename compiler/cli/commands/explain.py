"""`compile explain`: what a pass would do to a model, site by site, writing nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, AllowPickle, DataPath, Inputs, Model, Shared

if TYPE_CHECKING:
    from rich.console import RenderableType

    from compiler.program import Program
    from compiler.rewriting import Graft, Pass, PassContext, Rewrite


def explain(
    pass_: Annotated[str, Parameter(name="PASS", help="A pass with its options, as in --passes; or a pipeline.")],
    model: Model,
    *,
    after: Annotated[str, Parameter(help="Passes to run first.")] = "canonicalize",
    data: DataPath = None,
    inputs: Inputs = (),
    allow_pickle: AllowPickle = False,
    shared: Shared = SHARED,
) -> Answer:
    """Say what a pass would do at each site of a model, or why not."""
    from compiler.cli.loading import after_passes, load, looking_context
    from compiler.recipe import build_passes, parse_passes

    with shared.terminal.working(f"explaining {pass_}"):
        loaded = load(model, shared, inputs, allow_pickle=allow_pickle)
        passes = build_passes(parse_passes(pass_), loaded.registry.passes(), loaded.registry.pipelines())
        first = "" if any(one.name == after for one in passes) else after
        context = looking_context(loaded, shared, data)
        program = after_passes(loaded, first, context)
        documents = []
        for one in passes:
            program, document = _explain_pass(one, program, context)
            documents.append(document)
    shown = [part for document in documents for part in _shown(document)]
    return Answer({"model": model, "after": first, "passes": documents}, tuple(shown))


def _explain_pass(one: Pass, program: Program, context: PassContext) -> tuple[Program, dict[str, Any]]:
    """The Program after a rewrite (a graft leaves it), and what the pass said."""
    from compiler.pipeline import make_of
    from compiler.recipe import spec_of
    from compiler.rewriting import Graft, Rewrite

    document: dict[str, Any] = {"pass": str(spec_of(one)), "make": make_of(one)}
    if isinstance(one, Graft):
        return program, document | {"sites": _proposals(one, program, context)}
    assert isinstance(one, Rewrite)
    after, changes = _rewritten(one, program, context)
    return after, document | changes


def _proposals(graft: Graft, program: Program, context: PassContext) -> list[dict[str, Any]]:
    from compiler.cli.site_listing import site_bytes
    from compiler.program import storage_bytes
    from compiler.rewriting import Replacement
    from compiler.selection.choose_sites import choose_sites
    from compiler.sites import Refusal, Site, find_sites

    documents: list[dict[str, Any]] = []
    found = find_sites(program, graft.site_kinds)
    chosen = choose_sites(graft, [site for site in found if isinstance(site, Site)], program, context)
    left_out = {refusal.node: refusal for refusal in chosen.left_out}
    for site in found:
        refusal = site if isinstance(site, Refusal) else left_out.get(site.output.name)
        if refusal is not None:
            documents.append({"kind": refusal.kind, "site": refusal.name or refusal.node, "refused": refusal.reason})
            continue
        assert isinstance(site, Site)
        context.progress(f"{graft.name}: {site.name}")
        document: dict[str, Any] = {"kind": site.kind, "site": site.name}
        proposal = graft.propose(site, program, context)
        if isinstance(proposal, Replacement):
            tensors = [*proposal.module.parameters(), *proposal.module.buffers()]
            document |= {
                "proposal": proposal.note,
                "bytes_before": site_bytes(program, site),
                "bytes_after": storage_bytes(tensors),
                "has_gentler": proposal.gentler is not None,
            }
        else:
            document["refused"] = proposal.reason
        documents.append(document)
    return documents


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
    from compiler.cli.terminal import line, table

    if document["make"] == "graft":
        rows = [
            (
                one["site"] or "",
                one["kind"],
                one.get("proposal") or f"refused: {one['refused']}",
                _size(one.get("bytes_before")),
                _size(one.get("bytes_after")),
            )
            for one in document["sites"]
        ]
        taken = [one for one in document["sites"] if "proposal" in one]
        saved = sum(one["bytes_before"] for one in taken), sum(one["bytes_after"] for one in taken)
        total = f"{len(taken)} of {len(rows)} sites: {_size(saved[0])} MB before, {_size(saved[1])} MB after"
        return [
            line(f"{document['pass']} (graft)"),
            table(("site", "kind", "what it would do", ">MB before", ">MB after"), rows),
            line(total),
        ]
    shown: list[RenderableType] = [
        line(f"{document['pass']} (rewrite): {len(document['changed'])} changes, "
             f"{document['nodes_before']} nodes before, {document['nodes_after']} after")
    ]  # fmt: skip
    shown += [line(f"  {name}") for name in document["changed"]]
    shown += [line(f"  note: {note}") for note in document["notes"]]
    refusals = [(one["name"] or one["node"] or "", one["reason"]) for one in document["refusals"]]
    return [*shown, table(("left alone", "why"), refusals)] if refusals else shown


def _size(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.3f}"
