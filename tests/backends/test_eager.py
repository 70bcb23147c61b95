"""The reference backend writes what torch reads back, bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compiler.backends.eager import Eager
from compiler.frontends.torch_export import capture
from compiler.target import Target


def test_the_saved_program_gives_the_same_numbers(tmp_path: Path) -> None:
    program = capture(nn.Linear(4, 3).eval(), {"input": torch.randn(2, 4)}, source="linear")
    lowered = Eager().lower(program, Target.parse("cpu"), tmp_path)
    assert lowered.kernels == {"aten.linear.default": 1}
    module = torch.export.load(tmp_path / lowered.entry).module(check_guards=False)
    x = torch.randn(5, 4)
    assert torch.equal(module(x)[0], program.run(x)[0])


def test_targets_without_torch_are_refused() -> None:
    program = capture(nn.Linear(4, 3).eval(), {"input": torch.randn(2, 4)}, source="linear")
    assert Eager().refuses(program, Target.parse("wasm")) == "it serves cpu, linux-x86_64, linux-aarch64, not wasm"
