"""`compile diff`: what sets two artifacts, two models, or a model and an artifact apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, AllowPickle, Inputs, Shared

if TYPE_CHECKING:
    from compiler.program import Program

Side = Annotated[str, Parameter(help="A model, or the folder of an artifact.")]
Facts = dict[str, str]

ONLY_OF_ARTIFACTS = ("regraft", "runtime", "made with", "file")
"""Facts that say nothing when the other side is a model."""


def diff(
    a: Side,
    b: Side,
    *,
    passes: Annotated[str, Parameter(help="Passes to run on models before they are compared.")] = "",
    inputs: Inputs = (),
    allow_pickle: AllowPickle = False,
    shared: Shared = SHARED,
) -> Answer:
    """Compare two artifacts (passes, sizes, evidence, kernels), two models (their graphs), or one of each."""
    from compiler.cli.terminal import line, table

    def read(side: str) -> Program | Facts:
        if (Path(side) / "manifest.json").is_file():
            return artifact_facts(Path(side))
        from compiler.cli.loading import after_passes, load, looking_context

        loaded = load(side, shared, inputs, allow_pickle=allow_pickle)
        return after_passes(loaded, passes, looking_context(loaded, shared))

    with shared.terminal.working("comparing"):
        left, right = read(a), read(b)
    if not isinstance(left, dict) and not isinstance(right, dict):
        import difflib

        old, new = left.text().splitlines(), right.text().splitlines()
        lines = list(difflib.unified_diff(old, new, a, b, lineterm=""))
        return Answer({"same": not lines, "diff": lines}, tuple(map(line, lines or ["the two graphs are the same"])))
    facts = [one if isinstance(one, dict) else program_facts(one) for one in (left, right)]
    rows = differences(*facts)
    if isinstance(left, dict) != isinstance(right, dict):
        rows = [row for row in rows if not row[0].startswith(ONLY_OF_ARTIFACTS)]
    document = {"same": not rows, "differences": {name: {"a": one, "b": two} for name, one, two in rows}}
    return Answer(document, (table(("", a, b), rows) if rows else line("the two are the same"),))


def differences(left: Facts, right: Facts) -> list[tuple[str, str, str]]:
    """The facts that are not the same on both sides; a dash where one side has no such fact."""
    names = dict.fromkeys([*left, *right])
    return [(name, left.get(name, "-"), right.get(name, "-")) for name in names if left.get(name) != right.get(name)]


def artifact_facts(folder: Path) -> Facts:
    """What an artifact is, as lines to compare. Raises CompilerError when its manifest is damaged."""
    from compiler.runtime.manifest import read_manifest

    manifest = read_manifest(folder)
    facts: Facts = {
        "name": manifest.name,
        "inputs": "; ".join(map(str, manifest.inputs)),
        "outputs": "; ".join(map(str, manifest.outputs)),
        "regraft": manifest.regraft,
        "backend": manifest.backend,
        "target": manifest.target,
        "runtime": manifest.runtime.name,
    }
    for number, one in enumerate(manifest.passes, 1):
        facts[f"pass {number}"] = ":".join([one.name, *(f"{key}={value}" for key, value in one.options.items())])
    facts["bytes"] = f"{sum(record.bytes for record in manifest.files.values()):,}"
    facts |= {f"evidence {name}": str(value) for name, value in manifest.evidence.items()}
    facts |= {f"kernel {name}": str(count) for name, count in sorted(manifest.runtime.kernels.items())}
    facts |= {f"made with {name}": version for name, version in sorted(manifest.versions.items())}
    return facts | {f"file {name}": record.sha256[:12] for name, record in manifest.files.items()}


def program_facts(program: Program) -> Facts:
    """What a captured model is, in the words of `artifact_facts` where both have them."""
    from compiler.cli.commands.inspect import program_document

    document = program_document(program)
    facts: Facts = {
        "name": Path(program.source).name,
        "inputs": "; ".join(document["inputs"]),
        "outputs": "; ".join(document["outputs"]),
        "bytes": f"{document['weight_bytes']:,}",
    }
    return facts | {f"operator {name}": str(count) for name, count in sorted(document["operators"].items())}
