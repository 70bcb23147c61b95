"""Bytes, names, dynamic dims, weights beside the model, and what is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from lowered_program import CPU, LoweredProgram, captured
from torch import Tensor, nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.errors import CompilerError
from compiler.frontends.torch_export import capture
from compiler.target import Target


class _Tied(nn.Module):
    """A table used as it is and as an output projection: stored once."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        return nn.functional.linear(self.table(input_ids), self.table.weight)


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    program = captured(_Tied(), input_ids=IDS)
    files = [LoweredProgram(program, tmp_path / name).folder / "model.onnx" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_names_and_dynamic_dims_are_kept(tmp_path: Path) -> None:
    LoweredProgram(captured(_Tied(), input_ids=IDS), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in graph.input] == ["input_ids"]
    assert [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim] == ["batch", "sequence"]
    assert [dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        "sequence",
        100,
    ]


def test_nodes_say_which_module_they_are_from(tmp_path: Path) -> None:
    LoweredProgram(captured(_Tied(), input_ids=IDS), tmp_path)
    (gather,) = (node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Gather")
    noted = {prop.key: prop.value for prop in gather.metadata_props}
    assert noted == {"pkg.torch.onnx.name_scopes": f"['table', {gather.name!r}]"}


def test_the_model_is_valid(tmp_path: Path) -> None:
    LoweredProgram(captured(_Tied(), input_ids=IDS), tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    LoweredProgram(captured(_Tied(), input_ids=IDS), tmp_path)
    assert (tmp_path / "model.onnx").stat().st_size < 100 * 16 * 4 + 4096


def test_weights_stand_beside_a_model_that_would_be_too_large(tmp_path: Path) -> None:
    program = captured(_Tied(), input_ids=IDS)
    lowered = LoweredProgram(program, tmp_path, OnnxRuntime(external_above_bytes=1000))
    assert lowered.lowered.files == ("model.onnx", "model.onnx.data")
    assert (tmp_path / "model.onnx").stat().st_size < 4096
    assert (tmp_path / "model.onnx.data").stat().st_size >= 100 * 16 * 4
    assert lowered.largest_error(torch.tensor([[7, 8, 9, 10]])) < 1e-5


def test_an_input_that_is_returned_keeps_both_names(tmp_path: Path) -> None:
    class Echo(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = x + 1
            return x, y, y

    lowered = LoweredProgram(captured(Echo(), x=torch.randn(2, 3)), tmp_path)
    assert lowered.largest_error(torch.randn(4, 3)) == 0.0


@pytest.mark.parametrize("target", ["cuda", "rocm"])
def test_targets_without_a_processor_are_refused(target: str) -> None:
    reason = OnnxRuntime().refuses(captured(_Tied(), input_ids=IDS), Target.parse(target))
    assert reason == f"it serves cpu, linux-x86_64, linux-aarch64, wasm, not {target}"


def test_other_machines_are_served_with_a_note(tmp_path: Path) -> None:
    program = captured(_Tied(), input_ids=IDS)
    assert "this machine" in OnnxRuntime().lower(program, Target.parse("wasm"), tmp_path).notes[0]


def test_bfloat16_is_refused() -> None:
    program = capture(nn.Linear(4, 4).bfloat16().eval(), {"input": torch.randn(2, 4).bfloat16()}, source="half")
    reason = OnnxRuntime().refuses(program, CPU)
    assert reason is not None
    assert "bfloat16" in reason


def test_an_operator_without_translation_is_named() -> None:
    class Factor(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.cholesky(x)

    program = captured(Factor(), x=torch.eye(3).repeat(2, 1, 1))
    reason = OnnxRuntime().refuses(program, CPU)
    assert reason is not None
    assert "aten.linalg_cholesky_ex.default has no translation" in reason


def test_masks_as_indices_are_refused_with_a_way_out(tmp_path: Path) -> None:
    class Picked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.gather(x, 0, x.long().clamp(0, 0)) + torch.roll(x, 1)

    with pytest.raises(CompilerError, match="roll without dims"):
        OnnxRuntime().lower(captured(Picked(), x=torch.rand(3, 4)), CPU, tmp_path)
