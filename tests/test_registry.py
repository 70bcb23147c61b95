"""The registry: built-ins, plugin files, entry points that fail, and two of one name."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from compiler.errors import CompilerError
from compiler.registry import Registry

PLUGIN = """
from dataclasses import dataclass
from compiler.hookspecs import hookimpl
from compiler.rewriting import PassResult, Rewrite

@dataclass(frozen=True)
class Nothing(Rewrite):
    '''Does nothing.'''
    name = "{name}"
    family = "idle"
    def rewrite(self, program, context):
        return PassResult()

@hookimpl
def register_passes():
    return [Nothing]
"""


def plugin(folder: Path, file: str, name: str) -> Path:
    path = folder / file
    path.write_text(PLUGIN.format(name=name))
    return path


def test_a_plugin_file_registers_its_pass(tmp_path: Path) -> None:
    registry = Registry([plugin(tmp_path, "mine.py", "my-pass")])
    assert registry.passes()["my-pass"].name == "my-pass"
    assert registry.pipelines()["idle"] == "my-pass"
    assert "canonicalize" in registry.passes()


def test_two_passes_of_one_name_name_both_files(tmp_path: Path) -> None:
    files = [plugin(tmp_path, "one.py", "same"), plugin(tmp_path, "two.py", "same")]
    with pytest.raises(CompilerError) as caught:
        Registry(files).passes()
    assert "two of them are named 'same'" in caught.value.problem
    assert str(files[0]) in caught.value.problem
    assert str(files[1]) in caught.value.problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("import no_such_module_here", "it raised ModuleNotFoundError: No module named 'no_such_module_here' (line 1)"),
        ("x = 1\nraise SystemError('no')", "it raised SystemError: no (line 2)"),
        ("def broken(:", "it raised SyntaxError"),
        ("x = 1", "it implements no hook"),
    ],
)
def test_a_plugin_file_that_fails_is_one_clear_error(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(content)
    with pytest.raises(CompilerError) as caught:
        Registry([path])
    assert caught.value.problem.startswith(problem)


def test_a_missing_plugin_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match="there is no such file"):
        Registry([tmp_path / "none.py"])


def test_an_entry_point_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = importlib.metadata.EntryPoint("broken", "no_such_module_here:x", "regraft")

    def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        return [broken] if group == "regraft" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry = Registry()
    expected = "plugin broken (no_such_module_here:x) was left out: ModuleNotFoundError: No module named"
    assert [warning.startswith(expected) for warning in registry.warnings] == [True]
    assert "canonicalize" in registry.passes()


def test_an_unknown_backend_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(CompilerError) as caught:
        Registry().backend("onnx-runtime")
    assert caught.value.hint == "Did you mean 'onnx_runtime'?"
