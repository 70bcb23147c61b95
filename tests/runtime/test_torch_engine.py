"""Artifacts whose payload torch runs: the same checks around another engine, imported only for them."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_artifact import WIDTH, linear_contents, linear_reference, linear_weights

from compiler.artifact import ArtifactDraft, staged_artifact
from compiler.backend import Lowered
from compiler.errors import CompilerError
from compiler.runtime.session import Session
from compiler.runtime.verify import verify


class Linear(torch.nn.Module):
    """The linear model in torch."""

    weights: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.from_numpy(linear_weights(0)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [batch, WIDTH] -> scores [batch, 3] and choice [batch]."""
        scores = x @ self.weights
        return scores, scores.argmax(-1)


def lower(folder: Path) -> Lowered:
    """Write the linear model as program.pt2."""
    dims = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(Linear(), (torch.zeros(2, WIDTH),), dynamic_shapes=dims)
    torch.export.save(program, folder / "program.pt2")
    return Lowered("program.pt2", ("program.pt2",), "torch", {"torch": "2.13"})


def write(folder: Path, lowering: Callable[[Path], Lowered] = lower) -> None:
    """A whole artifact with a torch payload."""
    with staged_artifact(folder) as staging:
        ArtifactDraft(staging, lowering(staging), linear_contents()).finish({}, {})


def test_it_runs_and_verifies(tmp_path: Path) -> None:
    write(tmp_path / "out")
    assert verify(tmp_path / "out").passed
    x = np.random.default_rng(3).standard_normal((5, WIDTH)).astype(np.float32)
    x.flags.writeable = False
    found, expected = Session.open(tmp_path / "out").run({"x": x}), linear_reference(x, linear_weights(0))
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["choice"], expected["choice"])
    assert not (tmp_path / "out" / "run.py").exists(), "run.py is for ONNX Runtime"


def test_a_machine_without_torch_is_told_so(tmp_path: Path) -> None:
    write(tmp_path / "out")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from compiler.runtime.__main__ import main; sys.exit(main(['verify', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "it needs torch, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_payload_that_could_run_code_is_refused(tmp_path: Path) -> None:
    def lower_hostile(folder: Path) -> Lowered:
        lowered = lower(folder)
        pickled = pickle.dumps(print)
        replace_entry(folder / lowered.entry, "data/sample_inputs/model.pt", pickled)
        return lowered

    with pytest.raises(CompilerError, match="reading it could run code"):
        write(tmp_path / "out", lower_hostile)
    assert list(tmp_path.iterdir()) == []


def replace_entry(archive_file: Path, ending: str, content: bytes) -> None:
    """Put other content under the one entry of a zip archive whose name ends so."""
    with zipfile.ZipFile(archive_file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    (name,) = (name for name in entries if name.endswith(ending))
    with zipfile.ZipFile(archive_file, "w", zipfile.ZIP_STORED) as archive:
        for entry, kept in {**entries, name: content}.items():
            archive.writestr(entry, kept)
