"""An artifact where there are numpy, onnxruntime and tokenizers and nothing else: a new environment is really made.

Neither torch nor rich nor cyclopts is there; regraft comes as its built wheel, without its dependencies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from small_artifact import write_bag_of_words

from compiler.runtime.session import Session

if TYPE_CHECKING:
    from compiler.compile_model import CompileResult

CHECKOUT = Path(__file__).resolve().parent.parent
PROCESS_SECONDS = 300

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class CleanEnvironment:
    """Its interpreter, its `compile` command, and an empty folder to stand in."""

    python: Path
    command: Path
    work: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run something in the empty folder, with nothing of this checkout on the path."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.work)}
        command = [str(argument) for argument in arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.work,
            env=environment,
            timeout=PROCESS_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    """A virtual environment with the three packages and the wheel."""
    base = tmp_path_factory.mktemp("clean")
    source = copy_of_the_checkout(base / "source")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(base / "wheel")]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = (base / "wheel").glob("regraft-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(base / "venv")], check=True)
    python = base / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    constraints = ["--constraint", str(CHECKOUT / "constraints.txt")]
    subprocess.run([*install, *constraints, "numpy", "onnxruntime", "tokenizers"], check=True, capture_output=True)
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    (base / "work").mkdir()
    return CleanEnvironment(python, base / "venv" / "bin" / "compile", base / "work")


def copy_of_the_checkout(folder: Path) -> Path:
    """The files that a wheel is built from, so that building writes nothing into the checkout."""
    folder.mkdir()
    for name in ("compiler", "passes", "backends", "plugins"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small text model."""
    folder = tmp_path_factory.mktemp("bag")
    write_bag_of_words(folder / "out", folder / "model")
    return folder / "out"


def test_nothing_else_is_there(clean: CleanEnvironment) -> None:
    listed = clean.run(
        clean.python, "-c", "import importlib.metadata as m; print(*sorted(d.name for d in m.distributions()))"
    )
    assert listed.stdout.split() == ["numpy", "onnxruntime", "regraft", "tokenizers"]


def test_the_installed_command_verifies_runs_and_benches(clean: CleanEnvironment, bag: Path) -> None:
    done = clean.run(clean.command, "verify", bag, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["passed"] is True
    done = clean.run(clean.command, "run", bag, "--text", "the cat", "--json")
    assert json.loads(done.stdout)["total"]["values"] == [[20, 22, 24, 26]]
    done = clean.run(clean.command, "bench", bag, "--against", bag / "model.onnx", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    assert "opens in" in done.stdout


def test_a_damaged_artifact_is_refused_by_name(clean: CleanEnvironment, bag: Path, tmp_path: Path) -> None:
    shutil.copytree(bag, tmp_path / "copy")
    content = bytearray((tmp_path / "copy" / "model.onnx").read_bytes())
    content[100] ^= 1
    (tmp_path / "copy" / "model.onnx").write_bytes(content)
    done = clean.run(clean.command, "verify", tmp_path / "copy")
    assert done.returncode == 1
    assert "model.onnx does not have the sha256 that was recorded" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Hint: ")


def test_the_module_does_what_the_command_does(clean: CleanEnvironment, bag: Path) -> None:
    done = clean.run(clean.python, "-m", "compiler.runtime", "verify", bag)
    assert (done.returncode, done.stderr) == (0, "")


def test_run_py_needs_no_regraft(clean: CleanEnvironment, bag: Path) -> None:
    assert clean.run(clean.python, "-I", bag / "run.py", "--verify").returncode == 0
    done = clean.run(clean.python, "-I", bag / "run.py", "--text", "the cat", "--output", "y.npz")
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(np.load(clean.work / "y.npz")["total"], [[20, 22, 24, 26]])


def test_the_real_minilm_runs_there_as_it_did_here(clean: CleanEnvironment, minilm_int8: CompileResult) -> None:
    folder = shutil.copytree(minilm_int8.folder, clean.work / "carried")
    done = clean.run(clean.command, "verify", folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["outputs"][0]["error"] == 0, "the same machine, threads and runtime"
    assert clean.run(clean.python, "-I", folder / "run.py", "--verify").returncode == 0
    texts = ["A dog runs in the park.", "A puppy is running outside."]
    done = clean.run(clean.python, "-I", folder / "run.py", "--text", texts[0], "--text", texts[1], "--output", "e.npz")
    assert (done.returncode, done.stderr) == (0, "")
    session = Session.open(minilm_int8.folder)
    here = session.run(session.encode(texts))["sentence_embedding"]
    np.testing.assert_array_equal(np.load(clean.work / "e.npz")["sentence_embedding"], here)


def test_compiling_there_says_what_to_install(clean: CleanEnvironment) -> None:
    done = clean.run(clean.command, "model.onnx", "-o", "out")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "regraft[compile]" in done.stderr
