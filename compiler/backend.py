"""What a backend is: it says what it cannot do, and lowers what it can into the payload of an artifact."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.target import Target


@dataclass(frozen=True)
class Lowered:
    """The payload that a backend wrote.

    `entry` is the file to open, relative to the folder; `files` are all payload files, relative too. `runtime` names
    the engine that opens it ("onnxruntime", "torch"), `requires` its packages with the least version. `kernels` counts
    the operators of the lowered graph by name, so that what really runs can be read off. `options` are handed to the
    runtime. `rounds_inputs` says that kernels round inputs of the Program's quantized_linear to 8 bits: how far that
    moves outputs is measured, and `tolerance` is the least that holds.
    """

    entry: str
    files: tuple[str, ...]
    runtime: str
    requires: dict[str, str]
    instructions: tuple[str, ...] = ()
    kernels: dict[str, int] = field(default_factory=dict)
    options: dict[str, str | int | bool] = field(default_factory=dict)
    tolerance: float = 1e-3
    rounds_inputs: bool = False
    notes: tuple[str, ...] = ()


class Backend(ABC):
    """Lowers a Program for a target.

    `kernels` are the operators of the dialect that it runs by a kernel which computes with the codes as they are
    stored, and the name of that kernel. What stands in other codes is unpacked to floats when the model runs: smaller,
    but no faster. A `by_definition` backend is a reference that promises no speed of anything.
    """

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]]
    kernels: ClassVar[Mapping[str, str]] = {}
    by_definition: ClassVar[bool] = False

    @abstractmethod
    def refuses(self, program: Program, target: Target) -> str | None:
        """Why this Program cannot be lowered for this target, or None when it can."""

    def default_pipeline(self, target: Target) -> str:
        """The passes that run when the user names none."""
        return "canonicalize,fuse"

    @abstractmethod
    def lower(self, program: Program, target: Target, folder: Path) -> Lowered:
        """Write the payload into `folder`, which exists and is empty."""
