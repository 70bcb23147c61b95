"""Every architecture of the zoo through ONNX Runtime, against eager, at three sizes and with padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from lowered_program import CPU, LoweredProgram

from compiler.backends.onnx_runtime import OnnxRuntime

TOLERANCE = 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_architecture_gives_eager_numbers_at_other_sizes(name: str, tmp_path: Path) -> None:
    program, entry = zoo.program(name), zoo.entry(name)
    assert OnnxRuntime().refuses(program, CPU) is None
    lowered = LoweredProgram(program, tmp_path)
    for batch, sequence in ((2, 12), (3, 17), (1, 9)):
        inputs = entry.inputs_at(batch, sequence)
        assert lowered.largest_error(*(inputs[spec.name] for spec in program.inputs)) < TOLERANCE
