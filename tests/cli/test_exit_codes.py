"""How commands end: the exit code, one line and a hint, and no file left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compiler.cli import failures
from compiler.errors import CompilerError
from tests.cli.conftest import CHECKOUT, MODELS, Command, start

REFUSED = {
    "no such model": (["./nothing"], "no such model"),
    "no such pass": ([f"{MODELS}:classifier", "--passes", "canonicalise"], "Did you mean 'canonicalize'?"),
    "no such option": ([f"{MODELS}:classifier", "--passes", "quantize:bitz=4"], "Did you mean 'bits'?"),
    "wrong option": ([f"{MODELS}:classifier", "--passes", "quantize:bits=5"], "bits=5"),
    "no such backend": ([f"{MODELS}:classifier", "--backend", "onnxruntime"], "Did you mean 'onnx_runtime'?"),
    "no such target": ([f"{MODELS}:classifier", "--target", "cpux"], "Did you mean 'cpu'?"),
    "factory raises": ([f"{MODELS}:broken"], "the weights went missing"),
    "no recipe": (["--recipe", "nothing.toml"], "there is no such file"),
    "no data": ([f"{MODELS}:classifier", "--data", "nothing.npz"], "there is no such file"),
    "no artifact": (["verify", "nothing"], "there is no such folder"),
    "no plugin": (["passes", "--plugin", "nothing.py"], "there is no such file"),
    "wrong shape": ([f"{MODELS}:without_inputs", "--input", "x=float32[4,31]"], "[4, 31]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_user_can_mend_is_one_line_and_a_hint(case: str, run_command: Command) -> None:
    arguments, said = REFUSED[case]
    if arguments[0].partition(":")[0] == str(MODELS):
        arguments = [*arguments, "--quiet"]
    ran = run_command(*arguments)
    assert ran.code == 1
    assert ran.stdout == ""
    problem, hint = ran.stderr.strip().splitlines()[-2:]
    assert ": " in problem
    assert hint.startswith("Hint: ")
    assert said in problem + hint
    assert "Traceback" not in ran.stderr
    assert os.listdir() == []


USAGE = (
    [], ["--bogus"], ["run"], ["run", "x"], ["run", "x", "--text", "a", "--input", "b"],
    ["bench", "x", "--rounds", "0"], ["bench", "x", "--size", "batch"],
    ["x", "--max-drop", "much"], ["x", "--max-drop", "2"], ["completion", "tcsh"],
)  # fmt: skip


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_a_command_line_that_cannot_be_exits_2(arguments: list[str], run_command: Command) -> None:
    ran = run_command(*arguments)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("reading the command line: ")
    assert "Hint: " in ran.stderr


def test_a_near_miss_of_a_command_is_named(run_command: Command) -> None:
    assert "Did you mean 'bench'?" in run_command("banch", "out").stderr


def test_failures_are_one_document_with_json(run_command: Command) -> None:
    ran = run_command("verify", "nothing", "--json")
    assert ran.code == 1
    assert set(ran.document["error"]) == {"doing", "problem", "hint", "node"}


def test_our_own_bug_keeps_its_traceback(run_command: Command, tmp_path: Path) -> None:
    plugin = tmp_path / "faulty.py"
    plugin.write_text(
        "from compiler.hookspecs import hookimpl\n\n@hookimpl\ndef register_passes():\n    raise ValueError('ours')\n"
    )
    ran = run_command("passes", "--plugin", plugin)
    assert ran.code == 70
    assert "ValueError: ours" in ran.stderr
    assert ran.stderr.strip().endswith(failures.BUG_NOTICE)


def test_a_plugin_file_that_fails_to_import_is_an_error_with_its_line(run_command: Command, tmp_path: Path) -> None:
    plugin = tmp_path / "failing.py"
    plugin.write_text("\nimport does_not_exist\n")
    ran = run_command("passes", "--plugin", plugin)
    assert ran.code == 1
    assert "No module named 'does_not_exist' (line 2)" in ran.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "out/model.onnx"), "the disk is full (out/model.onnx)"),
        (MemoryError(), "memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 TB"), "memory ran out"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "torch is not installed"),
        (ModuleNotFoundError("No module named 'gguf.x'", name="gguf.x"), "gguf is not installed"),
    ],
)
def test_troubles_of_the_machine_are_not_our_bugs(error: Exception, said: str) -> None:
    known = failures.mendable(error)
    assert isinstance(known, CompilerError)
    assert said in str(known)


def test_other_exceptions_are_ours() -> None:
    assert failures.mendable(RuntimeError("shape mismatch")) is None
    assert failures.mendable(ModuleNotFoundError("No module named 'compiler.x'", name="compiler.x")) is None


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_compile_leaves_nothing(sent: int, code: int, tmp_path: Path) -> None:
    process = start(f"{MODELS}:classifier", "--backend", "eager", "-o", "out", cwd=tmp_path)
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(sent)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == code, first + rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    process: Any = start("passes", "--json", cwd=tmp_path, stdout=write)
    os.close(write)
    os.close(read)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 141
    assert said == ""


@pytest.mark.slow
def test_help_needs_neither_torch_nor_half_a_second(tmp_path: Path) -> None:
    """The time is the processor's, so that other work on the machine does not count."""
    code = "import sys; from compiler.cli import main; main(['--help']); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout.strip().endswith("set()")
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start("--help", cwd=tmp_path).communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5
