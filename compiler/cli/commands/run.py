"""`compile run`: an artifact on text or on arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.failures import UsageError
from compiler.cli.shared import SHARED, Folder, Shared, Threads


def run(
    folder: Folder,
    *,
    text: Annotated[tuple[str, ...], Parameter(help="A text; may be repeated.")] = (),
    input: Annotated[Path | None, Parameter(help="An .npz with one array an input.")] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Write the outputs to this .npz.")] = None,
    threads: Threads = None,
    shared: Shared = SHARED,
) -> Answer:
    """Run an artifact on text or on arrays."""
    from compiler.cli.terminal import line
    from compiler.runtime.presentation import outputs_as_json, outputs_as_text
    from compiler.runtime.session import Session
    from compiler.runtime.tensor_file import read_tensors, write_tensors

    if bool(text) == (input is not None):
        problem = "both --text and --input are given" if text else "neither --text nor --input is given"
        raise UsageError(problem, 'Give --text "..." or --input F.npz.')
    session = Session.open(folder, threads)
    outputs = session.run(session.encode(text) if input is None else read_tensors(input))
    if output is not None:
        write_tensors(output, outputs)
    return Answer(
        outputs_as_json(outputs), shown=(line(outputs_as_text(outputs, embeddings=session.manifest.role == "encoder")),)
    )
