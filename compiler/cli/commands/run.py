"""`compile run`: an artifact on text, on arrays, or on prompts that it continues."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from compiler.cli.answer import Answer
from compiler.cli.failures import UsageError
from compiler.cli.generation_options import NO_GENERATION, GenerationOptions
from compiler.cli.shared import SHARED, Folder, Shared, Threads


def run(
    folder: Folder,
    *,
    text: Annotated[tuple[str, ...], Parameter(help="A text; may be repeated.")] = (),
    input: Annotated[Path | None, Parameter(help="An .npz with one array an input.")] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Write the outputs to this .npz.")] = None,
    generation: GenerationOptions = NO_GENERATION,
    threads: Threads = None,
    shared: Shared = SHARED,
) -> Answer:
    """Run an artifact on text or on arrays, or let a language model continue prompts."""
    _check(text, input, output, generation)
    if generation.prompt:
        return _generate(folder, generation, threads, shared)
    from compiler.cli.terminal import line
    from compiler.runtime.presentation import outputs_as_json, outputs_as_text
    from compiler.runtime.session import Session
    from compiler.runtime.tensor_file import read_tensors, write_tensors

    session = Session.open(folder, threads)
    outputs = session.run(session.encode(text) if input is None else read_tensors(input))
    if output is not None:
        write_tensors(output, outputs)
    return Answer(
        outputs_as_json(outputs), shown=(line(outputs_as_text(outputs, embeddings=session.manifest.role == "encoder")),)
    )


def _check(text: tuple[str, ...], input: Path | None, output: Path | None, generation: GenerationOptions) -> None:
    given = {"--text": bool(text), "--input": input is not None, "--prompt": bool(generation.prompt)}
    named = [name for name, there in given.items() if there]
    if not named:
        problem = "none of --text, --input and --prompt is given"
        raise UsageError(problem, 'Give --text "...", --input F.npz or, for a language model, --prompt "...".')
    if len(named) > 1:
        raise UsageError(f"both {named[0]} and {named[1]} are given", "Give one of them.")
    if generation.prompt and output is not None:
        raise UsageError("--output is for arrays", "Send the text to a file with > FILE, or use --json.")
    if not generation.prompt and generation != NO_GENERATION:
        raise UsageError("options of text generation are given without --prompt", 'Give --prompt "...".')
    if generation.prompt.count("-") > 1:
        raise UsageError("standard input is asked for twice", "Give --prompt - once.")


def _generate(folder: Path, generation: GenerationOptions, threads: int | None, shared: Shared) -> Answer:
    from compiler.cli.terminal import line
    from compiler.runtime.generation.engine import Engine
    from compiler.runtime.generation.writing import MOST_SLOTS, prompt_tokens, speeds_as_text, write_texts

    sampling = generation.sampling()
    prompts = [sys.stdin.read() if prompt == "-" else prompt for prompt in generation.prompt]
    with Engine.open(folder, min(len(prompts), MOST_SLOTS), threads, generation.speculate) as engine:
        tokens = [prompt_tokens(engine, prompt, generation.system, generation.raw) for prompt in prompts]
        write = _silent if shared.json else _write
        try:
            document = write_texts(engine, tokens, sampling, write)
        except KeyboardInterrupt:
            write("\n")
            raise
    return Answer(document, summary=(line(speeds_as_text(document)),))


def _write(text: str) -> None:
    """A piece of text, at once. In a terminal without control characters: a model may write any."""
    if sys.stdout.isatty():
        text = "".join(c if c in "\n\t" or not _is_control(c) else f"\\x{ord(c):02x}" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def _silent(text: str) -> None:
    """Nothing: --json prints the texts in its document."""


def _is_control(character: str) -> bool:
    return ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0
