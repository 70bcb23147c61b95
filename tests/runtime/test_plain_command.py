"""`python -m compiler.runtime`, and the run.py inside an artifact: what an edge developer types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_artifact import WIDTH, linear_reference, linear_weights, write_bag_of_words, write_linear

from compiler.runtime.__main__ import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both small artifacts, and inputs for the linear one."""
    base = tmp_path_factory.mktemp("plain")
    write_linear(base / "linear")
    write_bag_of_words(base / "bag", base / "model")
    np.savez(base / "x.npz", x=np.ones((1, WIDTH), np.float32))
    return {"linear": base / "linear", "bag": base / "bag", "x": base / "x.npz"}


def test_verify(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folders["linear"])]) == 0
    assert "7 of 7 files as recorded" in capsys.readouterr().out
    assert main(["verify", str(folders["bag"]), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    assert document["outputs"][0]["name"] == "total"


def test_verify_names_the_damaged_file(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folders["linear"], tmp_path / "copy")
    (tmp_path / "copy" / "recipe.toml").write_text('model = "lineas"\n')
    assert main(["verify", str(tmp_path / "copy"), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["files"].keys() == {"recipe.toml"}
    problem, hint = captured.err.splitlines()
    assert problem.startswith(f"verifying {tmp_path / 'copy'}: recipe.toml does not have the sha256")
    assert hint.startswith("Hint: Copy the artifact again")


def test_run_on_text_and_on_arrays(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(folders["bag"]), "--text", "the cat", "--text", "mat", "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["total"]
    assert total["values"] == [[8 + 12, 9 + 13, 10 + 14, 11 + 15], [28, 29, 30, 31]]
    assert main(["run", str(folders["bag"]), "--text", "the cat", "--text", "the cat"]) == 0
    assert "cosine between the rows of total:\n[[1.000 1.000]\n [1.000 1.000]]" in capsys.readouterr().out
    output = tmp_path / "y.npz"
    assert main(["run", str(folders["linear"]), "--input", str(folders["x"]), "--output", str(output)]) == 0
    assert "scores: float32[1, 3]" in capsys.readouterr().out
    expected = linear_reference(np.ones((1, WIDTH), np.float32), linear_weights(0))
    np.testing.assert_allclose(np.load(output)["scores"], expected["scores"], rtol=1e-5)


def test_bench(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    against = ["--against", str(folders["linear"] / "model.onnx")]
    assert main(["bench", str(folders["linear"]), *against, "--size", "batch=4", "--rounds", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["shapes"] == {"x": [4, 8]}
    assert [side["name"] for side in document["sides"]] == ["linear", "model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["verify", "no-such-folder"], 1),
        (["run", "LINEAR", "--text", "the cat"], 1),
        (["run", "LINEAR", "--input", "no-such-file.npz"], 1),
        (["run", "LINEAR"], 2),
        (["bench", "LINEAR", "--size", "batch"], 2),
        (["bench", "LINEAR", "--rounds", "0"], 2),
        (["frobnicate"], 2),
        ([], 2),
    ],
)
def test_mistakes_have_an_exit_code_and_no_traceback(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    given = [str(folders["linear"]) if argument == "LINEAR" else argument for argument in arguments]
    try:
        found = main(given)
    except SystemExit as stop:
        found = int(stop.code or 0)
    captured = capsys.readouterr()
    assert found == code
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert code == 2 or "Hint: " in captured.err


def run_standalone(folder: Path, *arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    """run.py by its own interpreter, with regraft out of reach."""
    command = [sys.executable, "-I", str(folder / "run.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=where, env={"PATH": os.environ["PATH"]}, check=False
    )


def test_run_py_verifies_and_runs_from_another_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    done = run_standalone(folders["bag"], "--verify", where=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "every file and every output is as it was" in done.stdout
    done = run_standalone(folders["bag"], "--text", "the cat", "--output", "y.npz", where=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "total: float32[1, 4]" in done.stdout
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["total"], [[20, 22, 24, 26]])
    done = run_standalone(folders["linear"], "--input", str(folders["x"]), where=tmp_path)
    assert "scores: float32[1, 3]" in done.stdout
    done = run_standalone(folders["linear"], "--text", "the cat", where=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "takes no text" in done.stderr


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "tokenizer.json", "recipe.toml", "run.py"])
def test_run_py_names_the_damaged_file(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    shutil.copytree(folders["bag"], tmp_path / "copy")
    with (tmp_path / "copy" / name).open("ab") as file:
        file.write(b"\n")
    done = run_standalone(tmp_path / "copy", "--verify", where=tmp_path)
    assert done.returncode == 1
    assert done.stdout == f"{name} is missing or was changed\n"


def test_run_py_notices_a_changed_manifest(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["bag"], tmp_path / "copy")
    manifest = tmp_path / "copy" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tolerance": 1e-05', '"tolerance": 9e-05'))
    done = run_standalone(tmp_path / "copy", "--verify", where=tmp_path)
    assert (done.returncode, done.stdout) == (1, "manifest.json was changed\n")


def test_run_py_stands_alone(folders: dict[str, Path]) -> None:
    source = (folders["bag"] / "run.py").read_text(encoding="utf-8")
    assert "compiler" not in source
    assert len(source.splitlines()) < 150
