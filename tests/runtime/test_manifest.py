"""The manifest: what it says survives a round trip, and nothing damaged or hostile gets past the parser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artifact import rewrite_manifest, write_linear

from compiler.errors import CompilerError
from compiler.runtime.manifest import (
    FORMAT_VERSION,
    LARGEST_MANIFEST_BYTES,
    DimensionRange,
    Manifest,
    claimed_files,
    is_safe_name,
    parse_manifest,
    read_manifest,
)
from compiler.runtime.strict_json import MalformedJsonError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """That of the linear model."""
    return write_linear(tmp_path_factory.mktemp("manifest") / "out")


def test_round_trip(manifest: Manifest) -> None:
    assert parse_manifest(manifest.to_text()) == manifest
    assert manifest.digest in manifest.to_text()


def test_every_flipped_bit_of_the_text_is_noticed(manifest: Manifest) -> None:
    original = manifest.to_text().encode()
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << (position % 7)
        with pytest.raises(MalformedJsonError):
            parse_manifest(damaged.decode("utf-8"))


@given(length=st.integers(min_value=0, max_value=3000))
@settings(max_examples=50)
def test_a_truncated_text_is_noticed(manifest: Manifest, length: int) -> None:
    text = manifest.to_text()
    with pytest.raises(MalformedJsonError):
        parse_manifest(text[: min(length, len(text) - 1)])


def test_white_space_that_was_added_is_noticed(manifest: Manifest) -> None:
    with pytest.raises(MalformedJsonError, match="does not match the sha256"):
        parse_manifest(manifest.to_text() + "\n")


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@settings(max_examples=60)
def test_any_json_is_a_manifest_or_a_clear_refusal(manifest: Manifest, value: object) -> None:
    for text in (json.dumps(value), json.dumps({**json.loads(manifest.to_text()), "inputs": value})):
        with pytest.raises(MalformedJsonError):
            parse_manifest(text)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("inputs", [{"name": "x", "dtype": "float32", "shape": [1.5]}], r"inputs\[0\].shape\[0\]: expected an integer"),
        ("inputs", [{"name": "x", "dtype": "float32"}], r"inputs\[0\].shape: it is missing"),
        ("inputs", [{"name": "x", "dtype": "float32", "shape": ["time"]}], "dim 'time' is not among the dimensions"),
        ("target", 3, "target: expected a string, found 3"),
        ("colour", "red", "colour: there is no such entry"),
        ("golden", {"file": "other.npz", "tolerance": 0.1}, "golden.file: 'other.npz' is not among the files"),
        ("golden", {"file": "golden.npz", "tolerance": True}, "golden.tolerance: expected a number, found True"),
        ("files", {"model.onnx": {"sha256": "abc", "bytes": 3}}, "it has no valid sha256"),
    ],
)
def test_forged_entries_are_refused(tmp_path: Path, name: str, value: object, problem: str) -> None:
    write_linear(tmp_path / "out")
    rewrite_manifest(tmp_path / "out", **{name: value})
    with pytest.raises(CompilerError, match=problem):
        read_manifest(tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/../../b",
        "C:\\x",
        "c:x",
        "a\\b",
        ".",
        "..",
        "",
        "a//b",
        "./a",
        "a\x00b",
        "manifest.json",
    ],
)
def test_file_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    assert not is_safe_name(name)
    write_linear(tmp_path / "out")
    files = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    rewrite_manifest(tmp_path / "out", files={**files, name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(CompilerError, match="does not stay inside the artifact"):
        read_manifest(tmp_path / "out")


def test_a_later_format_says_so(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(
        json.dumps({"format": "regraft artifact", "format_version": FORMAT_VERSION + 1, "new": "things"})
    )
    with pytest.raises(CompilerError, match=f"version {FORMAT_VERSION + 1}, and this regraft reads up to") as caught:
        read_manifest(tmp_path / "out")
    assert "Upgrade regraft" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": NaN}', "NaN is no number"),
        (b'{"format": 1, "format": 2}', "an entry is given twice"),
        (b'{"name": "a web page"}', "not a manifest of an artifact"),
        (b" " * (LARGEST_MANIFEST_BYTES + 1), "more than"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CompilerError, match=problem):
        read_manifest(tmp_path)
    assert claimed_files(tmp_path) is None


def test_there_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, problem in (
        (tmp_path, "no manifest.json"),
        (tmp_path / "none", "no such folder"),
        (tmp_path / "file", "not a folder"),
    ):
        with pytest.raises(CompilerError, match=problem):
            read_manifest(folder)


def test_a_linked_manifest_is_refused(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "manifest.json").symlink_to(tmp_path / "out" / "manifest.json")
    with pytest.raises(CompilerError, match=r"no manifest\.json"):
        read_manifest(tmp_path / "elsewhere")


def test_infinite_evidence_cannot_be_written(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="no JSON form"):
        _ = replace(manifest, evidence={"cosine": float("nan")}).to_text()


def test_ranges_read_as_words() -> None:
    assert str(DimensionRange(1, None)) == "1 or more"
    assert str(DimensionRange(2, 512)) == "2 to 512"
    assert str(DimensionRange(32, None, 32)) == "32 or more in multiples of 32"


@pytest.mark.parametrize(
    ("wanted", "allowed", "nearest"),
    [
        (3, DimensionRange(1, None), 3),
        (0, DimensionRange(2, None), 2),
        (600, DimensionRange(1, 512), 512),
        (33, DimensionRange(32, None, 32), 64),
        (500, DimensionRange(32, 100, 32), 96),
    ],
)
def test_the_nearest_size_is_allowed(wanted: int, allowed: DimensionRange, nearest: int) -> None:
    assert allowed.nearest(wanted) == nearest
    assert allowed.allows(nearest)
    assert not allowed.allows(allowed.minimum - 1)
