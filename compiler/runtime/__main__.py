"""`python -m compiler.runtime verify|run|bench FOLDER`: artifacts on a machine that has numpy and onnxruntime and
little else.

The `compile` command does the same with colours where rich and cyclopts are installed, and falls back to this where
they are not.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from compiler.errors import CompilerError

MORE = "Compiling models and the other commands need more packages: pip install 'regraft[compile]'"


class _Parser(argparse.ArgumentParser):
    """Says with every mistake where the commands are that this one does not have."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.format_usage()}{self.prog}: {message}\n{MORE}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 1: refused, with one line and a hint; 2: usage; 130: interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except CompilerError as error:
        print(error, f"Hint: {error.hint}", sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="compile", description="Check, run and time artifacts of regraft.", epilog=MORE)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    verify = commands.add_parser("verify", help="check every file and the golden outputs")
    run = commands.add_parser("run", help="run on text, on arrays or on prompts")
    bench = commands.add_parser("bench", help="time it, alone or against others")
    for command, function in ((verify, _verify), (run, _run), (bench, _bench)):
        command.set_defaults(command=function)
        command.add_argument("folder", type=Path, help="the artifact")
        command.add_argument("--threads", type=_count, help="processor threads; as the runtime chooses if left out")
        command.add_argument("--json", action="store_true", help="one JSON document on standard output")
    source = run.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", action="append", help="a text; may be given again")
    source.add_argument("--prompt", action="append", help="a text that a language model continues; may be given again")
    source.add_argument("--input", type=Path, help="an .npz with one array an input")
    run.add_argument("--output", type=Path, help="write the outputs to this .npz")
    run.add_argument("--raw", action="store_true", help="leave the model's chat template out")
    run.add_argument("--max-tokens", type=_count, default=256, help="the most new tokens of a text")
    run.add_argument("--temperature", type=float, default=0.0, help="above 0: draw the tokens")
    run.add_argument("--seed", type=int, help="the same seed draws the same tokens")
    bench.add_argument(
        "--against", type=Path, action="append", default=[], help="an .onnx file or an artifact; may be given again"
    )
    bench.add_argument(
        "--size", type=_size, action="append", default=[], metavar="DIM=N", help="as in batch=1; may be given again"
    )
    bench.add_argument("--rounds", type=_count, default=20)
    return parser


def _verify(arguments: argparse.Namespace) -> int:
    from compiler.runtime.verify import verify

    report = verify(arguments.folder, arguments.threads)
    _show(arguments, report.to_json(), report.text())
    report.require()
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if arguments.prompt:
        return _generate(arguments)
    from compiler.runtime.presentation import outputs_as_json, outputs_as_text
    from compiler.runtime.session import Session
    from compiler.runtime.tensor_file import read_tensors, write_tensors

    session = Session.open(arguments.folder, arguments.threads)
    inputs = session.encode(arguments.text) if arguments.text else read_tensors(arguments.input)
    outputs = session.run(inputs)
    if arguments.output:
        write_tensors(arguments.output, outputs)
    embeddings = session.manifest.role == "encoder"
    _show(arguments, outputs_as_json(outputs), outputs_as_text(outputs, embeddings=embeddings))
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from compiler.runtime.generation.engine import Engine
    from compiler.runtime.generation.sampling import SamplingOptions
    from compiler.runtime.generation.writing import MOST_SLOTS, prompt_tokens, speeds_as_text, write_texts

    options = SamplingOptions(arguments.max_tokens, arguments.temperature, seed=arguments.seed)
    write = (lambda text: None) if arguments.json else functools.partial(print, end="", flush=True)
    with Engine.open(arguments.folder, min(len(arguments.prompt), MOST_SLOTS), arguments.threads) as engine:
        prompts = [prompt_tokens(engine, prompt, None, arguments.raw) for prompt in arguments.prompt]
        document = write_texts(engine, prompts, options, write)
    if arguments.json:
        print(json.dumps(document, indent=2))
    print(speeds_as_text(document), file=sys.stderr)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from compiler.runtime.bench import BenchOptions, bench
    from compiler.runtime.contenders import contender

    options = BenchOptions(dict(arguments.size), arguments.threads, arguments.rounds)
    report = bench(arguments.folder, options, [contender(path) for path in arguments.against])
    _show(arguments, report.to_json(), report.text())
    return 0


def _show(arguments: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    print(json.dumps(document, indent=2) if arguments.json else text)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is less than 1")
    return count


def _size(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name or not size.isdecimal() or int(size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not DIM=N, as in batch=1")
    return name, int(size)


if __name__ == "__main__":
    sys.exit(main())
