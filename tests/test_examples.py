"""Every example runs, and a third party's graft in one file is measured, budgeted and lowered like a built-in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"
OWN_MODEL = f"{EXAMPLES / '02_your_own_model.py'}:digits"
ONE_FILE_GRAFT = EXAMPLES / "03_one_file_graft.py"


def compile_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    """Run the command in this process and return its one document."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_every_example_is_numbered_and_tested_here() -> None:
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert scripts == ["01_compile_from_python.py", "02_your_own_model.py", "03_one_file_graft.py"]


@pytest.mark.slow
def test_compiling_from_python(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "01_compile_from_python.py"), str(tmp_path / "digits")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=EXAMPLES.parent)
    assert done.stdout.splitlines()[-1] == "{'output': (3, 10)}"
    assert (tmp_path / "digits" / "manifest.json").is_file()


@pytest.mark.slow
def test_your_own_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = compile_json(capsys, OWN_MODEL, "-o", tmp_path / "digits")
    assert report["payload"]["mean_cosine"] > 0.9999  # type: ignore[index]
    assert "BatchNormalization" not in report["kernels"]  # type: ignore[operator]


class TestOneFileGraft:
    def test_it_is_one_small_file(self) -> None:
        assert len(ONE_FILE_GRAFT.read_text(encoding="utf-8").splitlines()) <= 60

    @pytest.mark.slow
    def test_it_is_measured_and_lowered(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        passes = "canonicalize,fuse,truncate-rank:keep=0.3"
        report = compile_json(
            capsys, OWN_MODEL, "--plugin", ONE_FILE_GRAFT, "--passes", passes, "-o", tmp_path / "narrow"
        )
        graft = report["passes"][-1]  # type: ignore[index]
        assert graft["name"] == "truncate-rank"
        assert graft["states"] == {"grafted": 2}
        assert 0 < graft["evidence"]["fidelity"]["mean_cosine"] < 1
        assert graft["evidence"]["weight_bytes"] < 0.5 * report["before"]["weight_bytes"]  # type: ignore[index]
        lowered, program = report["payload"], graft["evidence"]["fidelity"]
        assert lowered["mean_cosine"] == pytest.approx(program["mean_cosine"], abs=1e-4)  # type: ignore[index]
        assert main(["verify", str(tmp_path / "narrow"), "--quiet"]) == 0

    @pytest.mark.slow
    def test_it_is_held_by_a_budget(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        passes = "canonicalize,fuse,truncate-rank:keep=0.3"
        report = compile_json(
            capsys, OWN_MODEL, "--plugin", ONE_FILE_GRAFT, "--passes", passes, "--max-drop", "0.0001",
            "--backend", "eager", "-o", tmp_path / "held",
        )  # fmt: skip
        graft = report["passes"][-1]  # type: ignore[index]
        assert graft["evidence"]["fidelity"]["drop"] <= 0.0001
        assert graft["states"].get("returned", 0) + graft["states"].get("softened", 0) > 0
        assert "given back" in graft["notes"][0]


def test_the_demo_script_is_valid_shell() -> None:
    shell = shutil.which("sh")
    assert shell is not None
    assert subprocess.run([shell, "-n", str(EXAMPLES / "demo.sh")], check=False).returncode == 0
