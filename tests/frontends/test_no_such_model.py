from __future__ import annotations

from pathlib import Path

import pytest

from compiler.errors import CompilerError
from compiler.frontends import LoadOptions, load_model
from compiler.registry import Registry


def error_for(model: object) -> CompilerError:
    with pytest.raises(CompilerError) as caught:
        load_model(str(model), LoadOptions(), Registry(entry_points=False).frontends().values())
    assert caught.value.doing == f"reading model {str(model)!r}"
    return caught.value


def test_a_misspelled_path_gets_the_nearest_one(tmp_path: Path):
    (tmp_path / "minilm").mkdir()
    error = error_for(tmp_path / "minilmm")
    assert error.problem == "there is no such model"
    assert error.hint == f"Did you mean {str(tmp_path / 'minilm')!r}?"


def test_a_path_in_a_folder_that_is_not_there(tmp_path: Path):
    assert error_for(tmp_path / "no" / "model.gguf").hint == f"There is no folder {str(tmp_path / 'no')!r} either."


def test_nothing_near_lists_what_a_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    hint = error_for("sentence-encoder").hint
    for form in ("a folder with config.json", "a .gguf file", "a .pt2 file", "file.py:factory"):
        assert form in hint


def test_a_folder_without_config(tmp_path: Path):
    (tmp_path / "weights.txt").touch()
    error = error_for(tmp_path)
    assert error.problem == "the folder has no config.json"
    assert "weights.txt" in error.hint


def test_a_folder_around_a_model(tmp_path: Path):
    (tmp_path / "readme.md").touch()
    (tmp_path / "small.gguf").touch()
    assert error_for(tmp_path).hint == f"Did you mean {str(tmp_path / 'small.gguf')!r}?"


def test_a_file_of_another_kind(tmp_path: Path):
    (tmp_path / "model.h5").touch()
    assert error_for(tmp_path / "model.h5").problem == "files that end in '.h5' are not read"
