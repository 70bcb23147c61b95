"""`compile inspect`: what a model is made of, or what an artifact says of itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, AllowPickle, Inputs, Shared

if TYPE_CHECKING:
    from rich.console import RenderableType

    from compiler.frontends import UnsupportedOperatorsError
    from compiler.program import Program


def inspect(
    model: Annotated[str, Parameter(help="A model, or the folder of an artifact.")],
    *,
    passes: Annotated[str, Parameter(help="Passes to run before looking.")] = "canonicalize",
    kind: Annotated[tuple[str, ...], Parameter(help="Only sites of this kind; may be repeated.")] = (),
    inputs: Inputs = (),
    allow_pickle: AllowPickle = False,
    shared: Shared = SHARED,
) -> Answer:
    """Show a model's inputs, outputs, weights and sites, or an artifact's manifest."""
    if (Path(model) / "manifest.json").is_file():
        return _inspect_artifact(Path(model))
    from compiler.cli.loading import after_passes, load, looking_context
    from compiler.frontends import UnsupportedOperatorsError
    from compiler.sites import find_sites

    with shared.terminal.working(f"inspecting {model}"):
        try:
            loaded = load(model, shared, inputs, allow_pickle=allow_pickle)
        except UnsupportedOperatorsError as error:
            return _unsupported(error)
        program = after_passes(loaded, passes, looking_context(loaded, shared))
        document = program_document(program) | sites_document(program, find_sites(program, kind or None))
    return Answer(document, tuple(_shown(document)))


def _unsupported(error: UnsupportedOperatorsError) -> Answer:
    """The operators that are not read, as a table; the command still fails."""
    from compiler.cli.terminal import table

    rows = [(one.operator, str(one.count), one.first) for one in error.operators]
    document = {"unsupported": [asdict(one) for one in error.operators]}
    return Answer(document, (table(("operator not read", ">nodes", "first"), rows),), error=error)


def program_document(program: Program) -> dict[str, Any]:
    """What a Program takes, gives and holds."""
    from compiler.evidence.cost import weight_bytes
    from compiler.program_text import operator_name

    operators = Counter(operator_name(node) for node in program.graph.nodes if node.op == "call_function")
    return {
        "model": program.source,
        "role": program.role,
        "inputs": [str(spec) for spec in program.inputs],
        "outputs": [str(spec) for spec in program.outputs],
        "dimensions": {d.name: asdict(d.range) for d in program.dimensions.values()},
        "parameters": sum(weight.numel() for weight in program.weights().values()),
        "weight_bytes": weight_bytes(program),
        "operators": dict(operators.most_common()),
        "notes": list(program.notes),
    }


def sites_document(program: Program, found: Any) -> dict[str, Any]:
    """Sites and refusals."""
    from compiler.cli.site_listing import refusal_documents, site_documents

    return {"sites": site_documents(program, found), "refusals": refusal_documents(found)}


def _shown(document: dict[str, Any]) -> list[RenderableType]:
    from compiler.cli.site_listing import site_row
    from compiler.cli.terminal import line, table
    from compiler.runtime.manifest import DimensionRange

    size = f"{document['parameters']:,} parameters, {document['weight_bytes'] / 1e6:.1f} MB"
    shown: list[RenderableType] = [line(f"{document['model']} ({document['role']}): {size}")]
    shown += [line(f"  in   {one}") for one in document["inputs"]]
    shown += [line(f"  out  {one}") for one in document["outputs"]]
    for name, dim in document["dimensions"].items():
        shown.append(line(f"  {name} is {DimensionRange(**dim)}"))
    shown += [line(f"  note: {note}") for note in document["notes"]]
    for kind in dict.fromkeys(one["kind"] for one in document["sites"]):
        rows = [site_row(one) for one in document["sites"] if one["kind"] == kind]
        noun = "site" if len(rows) == 1 else "sites"
        shown += [line(f"\n{len(rows)} {kind} {noun}"), table(("site", "shapes", "bindings"), rows)]
    refusals = [(one["kind"], one["name"] or one["node"] or "", one["reason"]) for one in document["refusals"]]
    if refusals:
        shown += [line(f"\n{len(refusals)} refused"), table(("kind", "where", "why"), refusals)]
    return shown


def _inspect_artifact(folder: Path) -> Answer:
    from compiler.cli.terminal import line, table
    from compiler.runtime.manifest import read_manifest
    from compiler.runtime.strict_json import to_json

    manifest = read_manifest(folder)
    total = sum(record.bytes for record in manifest.files.values())
    passes = ", ".join(":".join([p.name, *(f"{k}={v}" for k, v in p.options.items())]) for p in manifest.passes)
    facts = [
        ("model", f"{manifest.name} ({manifest.role})"),
        ("made by", f"regraft {manifest.regraft}, backend {manifest.backend}, for {manifest.target}"),
        ("passes", passes or "none"),
        *(("in", str(spec)) for spec in manifest.inputs),
        *(("out", str(spec)) for spec in manifest.outputs),
        *((name, f"from {size}") for name, size in manifest.dimensions.items()),
        ("opened by", f"{manifest.runtime.name}: {manifest.runtime.entry}"),
        ("needs", ", ".join(f"{name} {least}" for name, least in manifest.runtime.requires.items())),
        ("kernels", ", ".join(f"{count} {name}" for name, count in manifest.runtime.kernels.items())),
        *(("evidence", f"{name} {value}") for name, value in manifest.evidence.items()),
        *(("note", note) for note in manifest.notes),
        ("digest", manifest.digest),
    ]
    files = [(name, f"{record.bytes:,}", record.sha256[:12]) for name, record in manifest.files.items()]
    shown = (
        table(("", ""), facts),
        line(f"{len(files)} files, {total / 1e6:.1f} MB"),
        table(("file", ">bytes", "sha256"), files),
    )
    return Answer(to_json(manifest) | {"bytes": total}, shown)
