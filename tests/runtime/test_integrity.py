"""Every way in which a copied artifact can be damaged is noticed, and the file at fault is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from small_artifact import write_linear

from compiler.errors import CompilerError
from compiler.runtime.session import Session
from compiler.runtime.verify import verify

FILES = ("golden.npz", "model.onnx", "recipe.toml", "report.html", "report.json", "run.py")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that nobody changes."""
    folder = tmp_path_factory.mktemp("pristine") / "out"
    write_linear(folder)
    return folder


@pytest.fixture
def artifact(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def test_a_copy_passes(artifact: Path) -> None:
    report = verify(artifact)
    assert report.passed
    assert {path.name for path in artifact.iterdir()} == {*FILES, "manifest.json"}
    assert [output.name for output in report.outputs] == ["scores", "choice"]
    report.require()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_names_the_file(artifact: Path, name: str, place: float) -> None:
    content = bytearray((artifact / name).read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    (artifact / name).write_bytes(content)
    report = verify(artifact)
    assert [finding.name for finding in report.files] == [name]
    assert not report.outputs, "a damaged payload is not opened"
    with pytest.raises(CompilerError, match=f"{name} does not have the sha256"):
        report.require()


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
def test_one_flipped_bit_in_the_manifest_names_it(artifact: Path, place: float) -> None:
    content = bytearray((artifact / "manifest.json").read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    (artifact / "manifest.json").write_bytes(content)
    with pytest.raises(CompilerError, match=r"manifest\.json"):
        verify(artifact)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named_by_verify_and_by_open(artifact: Path, name: str) -> None:
    os.truncate(artifact / name, (artifact / name).stat().st_size // 2)
    assert [finding.name for finding in verify(artifact).files] == [name]
    with pytest.raises(CompilerError, match=rf"{name} has [\d,]+ bytes and should have [\d,]+"):
        Session.open(artifact)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_by_verify_and_by_open(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    assert [str(finding) for finding in verify(artifact).files] == [f"{name} is missing"]
    with pytest.raises(CompilerError, match=f"{name} is missing"):
        Session.open(artifact)


def test_files_that_were_added_are_named(artifact: Path) -> None:
    (artifact / "extra").mkdir()
    (artifact / "extra" / "notes.txt").touch()
    (artifact / "away").symlink_to("/")
    found = [str(finding) for finding in verify(artifact).files]
    assert found == ["away is not a file of this artifact", "extra/notes.txt is not a file of this artifact"]


def test_a_file_replaced_by_a_link_is_refused(artifact: Path, tmp_path: Path) -> None:
    moved = tmp_path / "model.onnx"
    (artifact / "model.onnx").rename(moved)
    (artifact / "model.onnx").symlink_to(moved)
    assert [str(finding) for finding in verify(artifact).files] == ["model.onnx goes through a symbolic link"]
    with pytest.raises(CompilerError, match="symbolic link"):
        Session.open(artifact)


def test_a_file_replaced_by_a_pipe_does_not_hang(artifact: Path) -> None:
    (artifact / "model.onnx").unlink()
    os.mkfifo(artifact / "model.onnx")
    assert [str(finding) for finding in verify(artifact).files] == ["model.onnx is not a regular file"]


def test_several_findings_are_all_named(artifact: Path) -> None:
    (artifact / "run.py").unlink()
    (artifact / "model.onnx").write_bytes(b"")
    with pytest.raises(CompilerError, match=r"model.onnx has 0 bytes.*; run.py is missing"):
        verify(artifact).require()
