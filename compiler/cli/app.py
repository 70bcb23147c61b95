"""The commands of `compile`, and those that plugins add."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cyclopts import App, Parameter

from compiler import __version__
from compiler.cli.commands.backends import backends
from compiler.cli.commands.bench import bench
from compiler.cli.commands.compile import compile_command
from compiler.cli.commands.completion import completion
from compiler.cli.commands.diff import diff
from compiler.cli.commands.doctor import doctor
from compiler.cli.commands.explain import explain
from compiler.cli.commands.inspect import inspect
from compiler.cli.commands.new_plugin import new_plugin
from compiler.cli.commands.passes import passes
from compiler.cli.commands.run import run
from compiler.cli.commands.serve import serve
from compiler.cli.commands.targets import targets
from compiler.cli.commands.verify import verify

HELP = "Capture a model, rewrite and graft it, prove what that cost, and write an artifact that runs without torch."

USAGE = """Usage: compile MODEL [OPTIONS] -o OUT
       compile COMMAND [OPTIONS] [ARGS]
"""

COMMANDS = (
    run, serve, bench, verify, inspect, explain, diff, passes, backends, targets, new_plugin, doctor, completion,
)  # fmt: skip


def build_app() -> App:
    """The command line, without the commands of plugins."""
    app = App(
        name="compile",
        usage=USAGE,
        help=HELP,
        version=__version__,
        help_format="plaintext",
        default_parameter=Parameter(negative=(), show_default=False),
        default_command=compile_command,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        exit_on_error=False,
        print_error=False,
        help_epilogue="A plugin's own commands are listed by: compile doctor",
    )
    for command in COMMANDS:
        app.command(command)
    return app


def add_plugin_commands(app: App, argv: Sequence[str]) -> None:
    """Let plugins add commands, when the first word may be one of theirs.

    Loading plugins takes seconds (most import torch), so it is left out for our own commands, for paths and for
    options.
    """
    word = argv[0] if argv else ""
    if word in app or not word.replace("-", "").isidentifier() or Path(word).exists() or word.startswith("-"):
        return
    from compiler.registry import Registry

    files = [Path(value) for flag, value in pairwise(argv) if flag == "--plugin"]
    Registry(files).manager.hook.add_commands(app=app)
