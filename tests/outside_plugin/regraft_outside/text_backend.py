"""Lowers to an exported program for torch, with the Program's text beside it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from compiler.backend import Backend, Lowered
from compiler.program import Program
from compiler.target import Target


class TextBackend(Backend):
    """What a reader of graphs wants."""

    name: ClassVar[str] = "outside-text"
    targets: ClassVar[tuple[str, ...]] = ("cpu",)

    def refuses(self, program: Program, target: Target) -> str | None:
        return None if target.name == "cpu" else f"only cpu is served, not {target}"

    def default_pipeline(self, target: Target) -> str:
        return "outside-tidy"

    def lower(self, program: Program, target: Target, folder: Path) -> Lowered:
        torch.export.save(program.export(), folder / "model.pt2")
        (folder / "program.txt").write_text(program.text(), encoding="utf-8")
        return Lowered("model.pt2", ("model.pt2", "program.txt"), "torch", {"torch": "2.6"})
