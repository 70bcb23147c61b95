"""Options that every command has, and the types that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from compiler.cli.terminal import Terminal

OUTPUT_GROUP = Group("Output and plugins", sort_key=9)


@Parameter(name="*", group=OUTPUT_GROUP)
@dataclass(frozen=True)
class Shared:
    """How a command speaks, and the plugin files it loads."""

    json: Annotated[bool, Parameter(help="Print one JSON document on standard output, nothing else.")] = False
    quiet: Annotated[bool, Parameter(help="No progress, tables or hints.")] = False
    debug: Annotated[bool, Parameter(help="Show tracebacks and other packages' warnings.")] = False
    plugin: Annotated[
        tuple[Path, ...], Parameter(help="A Python file with passes or other hooks; may be repeated.")
    ] = ()

    @cached_property
    def terminal(self) -> Terminal:
        """Where progress goes."""
        from compiler.cli.terminal import Terminal

        return Terminal(silent=self.quiet or self.json)


SHARED = Shared()

Model = Annotated[
    str, Parameter(help="A folder with config.json, a .onnx, .gguf or .pt2 file, file.py:factory or module:factory.")
]
Folder = Annotated[Path, Parameter(help="The folder of an artifact.")]
Inputs = Annotated[
    tuple[str, ...], Parameter(name="--input", help="An input as name=dtype[shape], as in x=float32[batch,3,224,224].")
]
AllowPickle = Annotated[bool, Parameter(help="Read pickle files. They can run any code: only from makers you trust.")]
Threads = Annotated[int | None, Parameter(help="Processor threads; as the runtime chooses if left out.")]
DataPath = Annotated[
    str | None, Parameter(help="Text, jsonl, npz or a folder of these to measure on; a small shipped set if left out.")
]
