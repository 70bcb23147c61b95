"""Data from npz, jsonl and folders, and every broken form of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.evidence.data import BATCH_SIZE, load_dataset
from compiler.evidence.payload import typical_batch
from compiler.frontends.torch_export import capture
from compiler.program import Program


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.table(ids) * x.unsqueeze(-1)


@pytest.fixture(scope="module")
def program() -> Program:
    inputs = {"ids": torch.zeros(2, 3, dtype=torch.long), "x": torch.randn(2, 3)}
    dims = {0: "batch", 1: "sequence"}
    return capture(Two(), inputs, source="two", dynamic={"ids": dims, "x": dims})


def test_shipped_data_fits_the_inputs(program: Program) -> None:
    data = load_dataset(None, program)
    assert data.shipped
    assert data.name == "random inputs"
    assert all(int(batch[0].max()) < 7 for batch in data.scoring + data.calibration)
    assert max(int(batch[0].max()) for batch in data.scoring) > 1
    for batch in data.scoring:
        program.run(*batch)
    again = load_dataset(None, program)
    assert all(
        torch.equal(a, b) for x, y in zip(data.scoring, again.scoring, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_npz_is_split_by_turns(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, ids=np.arange(6)[:, None] + np.zeros((6, 3), np.int64), x=np.ones((6, 3), np.float64))
    data = load_dataset(str(path), program)
    assert not data.shipped
    assert [int(batch[0][0, 0]) for batch in data.calibration] == [0, 2, 4]
    assert [int(batch[0][0, 0]) for batch in data.scoring] == [1, 3, 5]
    assert data.scoring[0][1].dtype == torch.float32


def test_a_model_is_timed_on_arrays_that_are_given(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, ids=np.arange(20).reshape(4, 5) % 7, x=np.ones((4, 5), np.float32))
    ids, x = typical_batch(program, load_dataset(str(path), program))
    assert ids.tolist() == [[5, 6, 0, 1, 2]]  # of the first sample that judges
    assert x.shape == (1, 5)
    assert typical_batch(program, load_dataset(None, program))[0].shape == (1, 128)


def test_jsonl_and_folders(program: Program, tmp_path: Path) -> None:
    lines = [json.dumps({"ids": [i, i], "x": [1.0, 2.0]}) for i in range(4)]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "data.jsonl").write_text("\n".join(lines) + "\n\n")
    data = load_dataset(str(tmp_path), program)
    assert (data.calibration_count, data.scoring_count) == (2, 2)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("d.csv", b"1,2", "'.csv' is no known kind of data"),
        ("d.npz", b"PK\x03\x04 broken", "it is not a readable .npz file"),
        ("d.npz", b"", "it is not a readable .npz file"),
        ("d.jsonl", b"{", "line 1 is no JSON"),
        ("d.jsonl", b'{"a": 1}', 'line 1 has neither "text" nor the inputs ids, x'),
        ("d.jsonl", b'{"ids": [[1, 2]], "x": [1]}', "ids has shape [1, 1, 2]"),
        ("d.jsonl", b'{"ids": ["a"], "x": [1]}', "line 1:"),
        ("d.jsonl", b'{"text": "hello"}', "the model has no tokenizer to read text with"),
        ("d.txt", b"hello", "the model has no tokenizer to read text with"),
        ("d.jsonl", b"\xff\xfe", "it is no readable UTF-8 text"),
        ("d.jsonl", b'{"ids": [1, 2], "x": [1, 2]}', "it holds 1 samples"),
        ("d.jsonl", b"", "it holds 0 samples"),
    ],
)
def test_broken_data_is_answered(program: Program, tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CompilerError) as caught:
        load_dataset(str(path), program)
    assert caught.value.problem.startswith(problem)


def test_arrays_that_do_not_fit_are_answered(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, ids=np.zeros((2, 3), np.int64))
    with pytest.raises(CompilerError, match="it has no array 'x'"):
        load_dataset(str(path), program)
    np.savez(path, ids=np.zeros((2, 3), np.int64), x=np.array([["a"] * 3] * 2))
    with pytest.raises(CompilerError, match="x has dtype <U1"):
        load_dataset(str(path), program)
    np.savez(path, ids=np.zeros((2, 3), np.int64), x=np.array([[None] * 3] * 2))
    with pytest.raises(CompilerError, match="it holds pickled"):
        load_dataset(str(path), program)


def test_missing_data_is_answered(program: Program, tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match="there is no such file or folder"):
        load_dataset(str(tmp_path / "none.npz"), program)
    with pytest.raises(CompilerError, match=r"the folder holds no \.txt"):
        load_dataset(str(tmp_path), program)


def test_lines_to_train_on_are_in_no_other_part(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, ids=np.zeros((16, 3), np.int64), x=np.arange(16)[:, None] + np.zeros((16, 3)))
    data = load_dataset(str(path), program, training_tokens=1)
    parts = [{int(batch[1][0, 0]) for batch in part} for part in (data.scoring, data.calibration, data.training)]
    assert parts == [set(range(1, 16, 2)), {0, 8}, {2, 4, 6, 10, 12, 14}]
    assert not load_dataset(str(path), program).training


def test_what_is_left_over_is_trained_on(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, ids=np.zeros((700, 3), np.int64), x=np.arange(700)[:, None] + np.zeros((700, 3)))
    data = load_dataset(str(path), program, training_tokens=1)
    assert (data.scoring_count, data.calibration_count) == (256, 256)
    parts = [[int(batch[1][0, 0]) for batch in part] for part in (data.scoring, data.calibration, data.training)]
    assert len(parts[2]) == 188
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(700))


def test_many_samples_are_taken_from_every_file(program: Program, tmp_path: Path) -> None:
    """Not from the first files alone: x of a sample is the number of its file."""
    for file in range(4):
        np.savez(tmp_path / f"{file}.npz", ids=np.zeros((300, 3), np.int64), x=np.full((300, 3), file, np.float32))
    data = load_dataset(str(tmp_path), program, training_tokens=1)
    for part in (data.scoring, data.calibration):
        counts = np.bincount([int(batch[1][0, 0]) for batch in part], minlength=4)
        assert counts.sum() == 256
        assert counts.min() >= 63
    trained = [int(batch[1][0, 0]) for batch in data.training]
    assert np.bincount(trained).tolist() == [172] * 4
    assert len(set(trained[:BATCH_SIZE])) == 4


def test_random_inputs_to_train_on_are_others(program: Program) -> None:
    data = load_dataset(None, program, training_tokens=1)
    seen = {float(batch[1].flatten()[0]) for batch in (*data.scoring, *data.calibration)}
    assert data.training
    assert not seen & {float(batch[1].flatten()[0]) for batch in data.training}
