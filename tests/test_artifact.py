"""Writing artifacts: what is in them, that they come out the same, and that nothing half-written is ever left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_artifact import (
    MOST_TOKENS,
    REPORTS,
    linear_contents,
    lower_linear,
    write_bag_of_words,
    write_linear,
)

from compiler.artifact import ArtifactDraft, check_output_folder, staged_artifact
from compiler.errors import CompilerError
from compiler.runtime.golden import read_golden
from compiler.runtime.manifest import read_manifest
from compiler.runtime.verify import verify

TESTS = Path(__file__).parent
PROCESS_SECONDS = 60


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_an_artifact_holds(tmp_path: Path) -> None:
    written = write_linear(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest == written
    assert set(manifest.files) == {"golden.npz", "model.onnx", "recipe.toml", "report.html", "report.json", "run.py"}
    assert manifest.evidence == {"mean_cosine": 0.999}
    assert manifest.passes[0].options == {"bits": 8}
    assert (tmp_path / "out" / "recipe.toml").read_text() == 'model = "linear"\n'
    assert (tmp_path / "out" / "report.html").read_bytes() == REPORTS["report.html"]
    golden = read_golden(tmp_path / "out" / "golden.npz")
    np.testing.assert_allclose(golden.outputs["scores"], golden.reference["scores"], rtol=1e-5)


def test_twice_the_same_gives_the_same_bytes(tmp_path: Path) -> None:
    write_linear(tmp_path / "one")
    time.sleep(1.1)  # a stored time of one second's precision would show
    write_linear(tmp_path / "two")
    assert contents_of(tmp_path / "one") == contents_of(tmp_path / "two")


def test_nothing_in_an_artifact_names_this_machine(tmp_path: Path) -> None:
    write_bag_of_words(tmp_path / "out", tmp_path / "model")
    for name, content in contents_of(tmp_path / "out").items():
        assert str(tmp_path).encode() not in content, name
        assert os.fsencode(Path.home()) + b"/" not in content, name


def test_the_tokenizer_is_short_and_has_the_limits_of_the_model(tmp_path: Path) -> None:
    manifest = write_bag_of_words(tmp_path / "out", tmp_path / "model")
    assert manifest.text is not None
    assert (manifest.text.maximum_tokens, manifest.text.fixed_tokens) == (MOST_TOKENS, None)
    assert (manifest.text.padding_token, manifest.text.padding_id) == ("[PAD]", 0)
    stored = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert stored["truncation"] is None
    assert stored["padding"] is None
    original = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert stored["model"] == original["model"]
    assert (tmp_path / "out" / "tokenizer.json").stat().st_size < (tmp_path / "model" / "tokenizer.json").stat().st_size


def test_a_payload_with_other_numbers_than_the_program_is_refused(tmp_path: Path) -> None:
    contents = linear_contents()
    wrong = replace(contents, reference={**contents.reference, "scores": contents.reference["scores"] + 0.1})
    with pytest.raises(CompilerError, match="output scores moved by"), staged_artifact(tmp_path / "out") as staging:
        ArtifactDraft(staging, lower_linear(staging), wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_payload_that_cannot_run_here_is_checked_against_the_program_on_the_device(tmp_path: Path) -> None:
    with staged_artifact(tmp_path / "out") as staging:
        draft = ArtifactDraft(staging, lower_linear(staging), replace(linear_contents(), runs_here=False))
        assert draft.session is None
        draft.finish({}, REPORTS)
    assert read_golden(tmp_path / "out" / "golden.npz").outputs == {}
    assert verify(tmp_path / "out").passed


def test_an_unfinished_artifact_is_never_put_in_place(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    before = contents_of(tmp_path / "out")
    with pytest.raises(RuntimeError, match="not finished"), staged_artifact(tmp_path / "out") as staging:
        lower_linear(staging)
    assert contents_of(tmp_path / "out") == before


def test_an_artifact_is_replaced_even_when_it_is_damaged(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    (tmp_path / "out" / "model.onnx").write_bytes(b"")
    write_linear(tmp_path / "out", seed=1)
    assert verify(tmp_path / "out").passed


class TestRefusedPlaces:
    """An artifact never replaces what is not one."""

    def refused(self, folder: Path, problem: str) -> None:
        before = contents_of(folder) if folder.is_dir() else None
        with pytest.raises(CompilerError, match=problem) as early:
            check_output_folder(folder)
        assert early.value.hint
        with pytest.raises(CompilerError, match=problem):
            write_linear(folder)
        assert (contents_of(folder) if folder.is_dir() else None) == before

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        self.refused(tmp_path / "out", "it is a file")
        assert (tmp_path / "out").read_text() == "mine"

    def test_a_place_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        self.refused(tmp_path / "file" / "out", "is a file")

    def test_a_folder_with_other_things(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("mine")
        self.refused(tmp_path / "out", "not empty and holds no artifact")

    def test_a_web_application_with_its_own_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "manifest.json").write_text('{"name": "my app", "icons": []}')
        self.refused(tmp_path / "out", "not empty and holds no artifact")

    def test_an_artifact_with_the_users_own_files_in_it(self, tmp_path: Path) -> None:
        write_linear(tmp_path / "out")
        (tmp_path / "out" / "notes").mkdir()
        (tmp_path / "out" / "notes" / "a.txt").write_text("mine")
        self.refused(tmp_path / "out", "also holds notes/a.txt")

    def test_a_read_only_place(self, small_disk: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        self.refused(small_disk / "out", "cannot be written to")

    def test_an_empty_folder_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        write_linear(tmp_path / "out")
        assert verify(tmp_path / "out").passed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


LARGE = 40_000
"""Columns that make a payload of 1.3 MB."""


class TestFullDisk:
    def test_a_full_disk_leaves_nothing(self, small_disk: Path) -> None:
        with pytest.raises(CompilerError, match=r"writing .*: the disk is full") as caught:
            write_linear(small_disk / "deep" / "out", columns=LARGE)
        assert "Free some space" in caught.value.hint
        assert list(small_disk.iterdir()) == []

    def test_a_full_disk_leaves_the_old_artifact(self, small_disk: Path) -> None:
        write_linear(small_disk / "out")
        before = contents_of(small_disk / "out")
        with pytest.raises(CompilerError, match="the disk is full"):
            write_linear(small_disk / "out", columns=LARGE)
        assert contents_of(small_disk / "out") == before
        assert list(small_disk.iterdir()) == [small_disk / "out"]

    def test_a_library_that_hides_the_full_disk_is_seen_through(self, small_disk: Path) -> None:
        def lower_badly(staging: Path) -> None:
            try:
                lower_linear(staging, columns=LARGE)
            except OSError:
                raise RuntimeError("failed to write the file") from None

        with pytest.raises(CompilerError, match="the disk is full"), staged_artifact(small_disk / "out") as staging:
            lower_badly(staging)

    def test_a_mount_point_is_refused(self, small_disk: Path) -> None:
        with pytest.raises(CompilerError, match="something is mounted there") as caught:
            check_output_folder(small_disk)
        assert str(small_disk / "model") in caught.value.hint

    def test_a_limit_on_file_sizes_reads_as_a_full_disk(self, tmp_path: Path) -> None:
        write_linear(tmp_path / "out")
        code = f"""
            import resource, signal, sys
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            from pathlib import Path
            from small_artifact import write_linear
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            write_linear(Path(sys.argv[1]), columns={LARGE})
        """
        done = run_python(code, str(tmp_path / "out"))
        assert "CompilerError" in done.stderr.splitlines()[-1]
        assert "the disk is full" in done.stderr.splitlines()[-1]
        assert verify(tmp_path / "out").passed
        assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.slow
def test_sigkill_while_writing_leaves_an_artifact_that_verifies(tmp_path: Path) -> None:
    """Real kills of a process that overwrites an artifact again and again, at moments spread over its writing."""
    target = tmp_path / "place" / "out"
    write_linear(target)
    code = """
        import sys
        from pathlib import Path
        from small_artifact import write_linear
        write_linear(Path(sys.argv[2]))  # everything is imported
        print("ready", flush=True)
        for seed in range(1, 1_000_000):
            write_linear(Path(sys.argv[1]), seed, columns=3 + seed)
            print("written", flush=True)
    """
    moments = np.random.default_rng(0)
    seen = set()
    for _ in range(8):
        command = [sys.executable, "-c", textwrap.dedent(code), str(target), str(tmp_path / "other")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for _ in range(moments.integers(0, 4)):
            assert process.stdout.readline() == b"written\n"
        time.sleep(moments.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait(PROCESS_SECONDS)
        process.stdout.close()
        report = verify(target)
        assert report.passed, report.text()
        seen.add(report.manifest.digest)
    assert len(seen) > 2, "the kills came at different moments"
    write_linear(target)
    assert list(target.parent.iterdir()) == [target], "what the dead left is cleaned"


def environment() -> dict[str, str]:
    """That of a process that finds small_artifact."""
    return {**os.environ, "PYTHONPATH": str(TESTS)}


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python source in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PROCESS_SECONDS, env=environment(), check=False
    )
