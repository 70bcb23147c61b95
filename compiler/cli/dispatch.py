"""Runs one command line: parse, run, print the answer or the failure, give the exit code. Nothing else prints one."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Never

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from compiler.cli import failures
from compiler.cli.answer import Answer
from compiler.cli.app import add_plugin_commands, build_app
from compiler.errors import CompilerError, nearest_hint


def dispatch(argv: Sequence[str]) -> int:
    """Run the command line `argv` and return the exit code."""
    as_json, debug, quiet = (flag in argv for flag in ("--json", "--debug", "--quiet"))
    app = build_app()
    with _quiet_packages(debug), _terminated_like_interrupted():
        try:
            gc.enable()
            add_plugin_commands(app, argv)
            answer = app(list(argv))
            code = _print_answer(answer, as_json, quiet) if isinstance(answer, Answer) else failures.DONE
            sys.stdout.flush()
        except CycloptsError as error:
            return _refuse(_usage_error(app, argv, error), as_json, failures.USAGE)
        except KeyboardInterrupt:
            print("interrupted; nothing was left behind", file=sys.stderr)
            return failures.INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return failures.BROKEN_PIPE
        except Exception as error:
            known = failures.mendable(error)
            if known is None:
                failures.print_bug(error)
                return failures.BUG
            if debug:
                failures.print_bug(error) if known is not error else _print_traceback(error)
            return _refuse(known, as_json, failures.exit_code(known))
    return code


def _print_answer(answer: Answer, as_json: bool, quiet: bool) -> int:
    if as_json:
        print(json.dumps(answer.document, indent=2))
    else:
        from compiler.cli.terminal import show

        show(sys.stdout, answer.shown)
        if not quiet:
            show(sys.stderr, answer.summary)
    if answer.error is None:
        return failures.DONE
    failures.print_error(answer.error)
    return failures.REFUSED


def _refuse(error: CompilerError, as_json: bool, code: int) -> int:
    if as_json:
        print(json.dumps(failures.error_document(error), indent=2))
    failures.print_error(error)
    return code


def _print_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error, file=sys.stderr)


def _usage_error(app: App, argv: Sequence[str], error: CycloptsError) -> CompilerError:
    """cyclopts' words, with the command that may have been meant."""
    words = [word for word in argv if not word.startswith("-")]
    commands = [name for name in app if not name.startswith("-")]
    known = words[0] if words and words[0] in commands else None
    hint = f"See: compile {known} --help" if known else "See: compile --help"
    if words and known is None:
        hint = nearest_hint(words[0], commands, hint)
    problem = " ".join(str(error).split())
    return failures.UsageError(problem.rstrip("."), hint)


@contextmanager
def _quiet_packages(debug: bool) -> Iterator[None]:
    """Keep other packages' warnings and chatter away from the user, unless asked for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if debug:
        yield
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds the stack, so that half-written folders are removed; the exit code stays the usual 143."""

    def stop(number: int, frame: FrameType | None) -> Never:
        raise SystemExit(failures.TERMINATED)

    try:
        previous: Any = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
