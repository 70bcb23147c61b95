"""The reference backend: the Program as an exported program, run by torch. Slow, exact, and with every operator."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compiler.backend import Backend, Lowered
from compiler.hookspecs import hookimpl

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.target import Target

PROGRAM_FILE = "program.pt2"


class Eager(Backend):
    """Writes `program.pt2`, what `torch.export.load` reads."""

    name: ClassVar[str] = "eager"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "linux-x86_64", "linux-aarch64")
    by_definition: ClassVar[bool] = True

    def refuses(self, program: Program, target: Target) -> str | None:
        """Targets that torch on a processor does not serve."""
        return None if target.name in self.targets else f"it serves {', '.join(self.targets)}, not {target.name}"

    def lower(self, program: Program, target: Target, folder: Path) -> Lowered:
        """Export the Program once more and save it."""
        import torch

        exported = program.export()
        buffer = io.BytesIO()  # torch's own file writer aborts the process when the disk is full
        torch.export.save(exported, buffer)
        (folder / PROGRAM_FILE).write_bytes(buffer.getbuffer())
        calls = [node.target for node in exported.graph.nodes if node.op == "call_function"]
        version = torch.__version__.partition("+")[0]
        return Lowered(
            entry=PROGRAM_FILE,
            files=(PROGRAM_FILE,),
            runtime="torch",
            requires={"torch": ".".join(version.split(".")[:2])},
            kernels=dict(sorted(Counter(str(target) for target in calls if hasattr(target, "_schema")).items())),
        )


@hookimpl
def register_backends() -> list[type[Backend]]:
    return [Eager]
