""".npz files: the same bytes every time, numpy's own reader agrees, and hostile ones do no harm."""

from __future__ import annotations

import io
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compiler.errors import CompilerError
from compiler.runtime.golden import Golden, read_golden, write_golden
from compiler.runtime.tensor_file import read_tensors, write_tensors

DTYPES = st.sampled_from(["float32", "float64", "float16", "int64", "int8", "uint8", "bool", "int32"])


@given(array=DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0))))
@settings(max_examples=60)
def test_numpy_reads_what_is_written_and_so_do_we(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    write_tensors(path, {"a/b": array})
    with np.load(path, allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["a/b"], array)
    read = read_tensors(path)["a/b"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path: Path, save: object) -> None:
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    save(tmp_path / "a.npz", x=columns, y=np.arange(3)[::-1])
    read = read_tensors(tmp_path / "a.npz")
    np.testing.assert_array_equal(read["x"], columns)
    np.testing.assert_array_equal(read["y"], [2, 1, 0])


def test_the_bytes_do_not_depend_on_the_time(tmp_path: Path) -> None:
    golden = Golden({"x": np.ones(3)}, {"y": np.ones(2)}, {"y": np.zeros(2)})
    for name in ("one.npz", "two.npz"):
        write_golden(tmp_path / name, golden)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
    read = read_golden(tmp_path / "two.npz")
    np.testing.assert_array_equal(read.outputs["y"], np.zeros(2))


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(CompilerError, match="pickled Python objects"):
        read_tensors(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(3):
            archive.writestr(f"x{index}.npy", bytes(40 * 2**20))
    assert path.stat().st_size < 2**18
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CompilerError, match="unfolds to 125,829,120 bytes"):
        read_tensors(path, largest_bytes=2**26)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**20)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
    with pytest.raises(CompilerError, match="does not have 0 bytes"):
        read_tensors(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"PK\x05\x06" + bytes(10)])
def test_what_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CompilerError, match=r"not a readable \.npz"):
        read_tensors(tmp_path / "a.npz")


def test_a_flipped_bit_in_the_data_is_noticed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.npz", {"x": np.arange(1000.0)})
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[2000] ^= 4
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CompilerError, match="Bad CRC"):
        read_tensors(tmp_path / "a.npz")


def test_a_path_that_is_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match="no such file"):
        read_tensors(tmp_path / "none.npz")
    with pytest.raises(CompilerError, match="is a folder"):
        read_tensors(tmp_path)
