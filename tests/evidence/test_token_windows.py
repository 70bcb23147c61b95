"""Windows of tokens: nothing is in both halves, documents stay whole, large collections are sampled evenly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_language_models import BEGIN, VOCABULARY, Bigram, captured_language_model, save_word_tokenizer

from compiler.errors import CompilerError
from compiler.evidence.data import load_dataset
from compiler.evidence.token_windows import SHIPPED_PROSE, TokenWindows, token_windows
from compiler.program import Program
from compiler.runtime.manifest import DimensionRange

ANY_LENGTH = DimensionRange()


def words(first: int, count: int) -> str:
    """Words whose ids count up from `first`."""
    return " ".join(f"w{index}" for index in range(first, first + count))


@pytest.fixture(scope="module")
def model() -> Program:
    return captured_language_model(Bigram(VOCABULARY))


@pytest.fixture(scope="module")
def counting(model: Program, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A model whose tokenizer gives the word wN the id N."""
    return replace(model, tokenizer=save_word_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_documents_go_to_one_half_or_the_other(counting: Program) -> None:
    documents = [words(0, 10), words(20, 10), words(40, 10), words(60, 10)]
    found = token_windows("reading", documents, counting, DimensionRange(1, 5))
    assert found.length == 5
    assert [window.tolist()[0] for window in found.calibration] == [
        list(range(start, start + 5)) for start in (0, 5, 40, 45)
    ]
    assert [window[0, 0].item() for window in found.scoring] == [20, 25, 60, 65]


def test_a_window_begins_as_the_tokenizer_begins_a_text(model: Program, tmp_path: Path) -> None:
    begins = replace(model, tokenizer=save_word_tokenizer(tmp_path, begins=True))
    found = token_windows("reading", [words(0, 8), words(20, 8)], begins, DimensionRange(1, 5))
    assert [window.tolist()[0] for window in found.scoring] == [
        [BEGIN, 20, 21, 22, 23],
        [BEGIN, 24, 25, 26, 27],
    ]


def test_one_document_is_cut_between_paragraphs(counting: Program) -> None:
    text = f"{words(0, 18)}\n\n{words(20, 4)}\n\n{words(40, 20)}"
    found = token_windows("reading", [text], counting, DimensionRange(1, 4))
    calibration = torch.cat(found.calibration, 1).flatten().tolist()
    scoring = torch.cat(found.scoring, 1).flatten().tolist()
    assert calibration == list(range(16))
    assert scoring == [*range(20, 24), *range(40, 60)]


def test_short_texts_are_one_short_window(counting: Program) -> None:
    found = token_windows("reading", [words(0, 3), words(20, 4)], counting, ANY_LENGTH)
    assert [window.tolist()[0] for window in (*found.calibration, *found.scoring)] == [[0, 1, 2], [20, 21, 22, 23]]


def test_of_many_documents_a_passage_each(counting: Program) -> None:
    documents = [f"{words(index, 1)} " * 500 for index in range(80)]
    found = token_windows("reading", documents, counting, DimensionRange(1, 8))
    assert len(found.scoring) == 8
    assert len({int(window[0, -1]) for window in found.scoring}) > 6
    assert not {int(token) for window in found.scoring for token in window[0]} & {
        int(token) for window in found.calibration for token in window[0]
    }


@pytest.mark.parametrize("documents", [[], [""], ["w1"], ["w1 w2", ""], ["w1", "w2"]], ids=str)
def test_too_little_text_is_answered(counting: Program, documents: list[str]) -> None:
    with pytest.raises(CompilerError, match="too little text"):
        token_windows("reading data x.txt", documents, counting, ANY_LENGTH)


def test_text_files_are_documents(counting: Program, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(0, 20).replace(" ", "\n"), encoding="utf-8")
    (tmp_path / "b.md").write_text(words(40, 20), encoding="utf-8")
    data = load_dataset(str(tmp_path), counting)
    assert (data.scoring_count, data.calibration_count) == (1, 1)
    assert data.calibration[0][0].tolist() == [list(range(20))]
    assert data.scoring[0][0].tolist() == [list(range(40, 60))]
    assert data.scoring[0][1].tolist() == [[1] * 20]
    assert data.unit == "window"
    assert data.name.endswith(", 256 tokens each")


def test_texts_of_jsonl_are_documents(counting: Program, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "w1 w2 w3"}\n{"text": "w4 w5 w6"}\n', encoding="utf-8")
    data = load_dataset(str(path), counting)
    assert data.scoring[0][0].tolist() == [[4, 5, 6]]


def test_shipped_prose_is_enough_for_both_halves() -> None:
    documents = sorted(SHIPPED_PROSE.glob("*.txt"))
    assert len(documents) == 16
    halves = [sum(len(path.read_text(encoding="utf-8").split()) for path in documents[side::2]) for side in (0, 1)]
    assert min(halves) > 3_000
    assert sum(path.stat().st_size for path in documents) < 60_000


def test_documents_to_train_on_are_in_no_other_part(counting: Program) -> None:
    documents = [words(10 * index, 8) for index in range(8)]
    found = token_windows("reading", documents, counting, DimensionRange(1, 4), training_tokens=100)
    parts = [{int(token) // 10 for window in part for token in window[0]} for part in found_parts(found)]
    assert parts == [{1, 3, 5, 7}, {0}, {2, 4, 6}]
    assert not token_windows("reading", documents, counting, DimensionRange(1, 4)).training


def test_as_many_tokens_to_train_on_as_are_wanted(counting: Program) -> None:
    documents = [f"{words(index, 1)} " * 500 for index in range(40)]
    found = token_windows("reading", documents, counting, ANY_LENGTH, training_tokens=3000)
    assert {window.shape[1] for window in found.training} == {512}
    assert len(found.training) == 6
    assert len({int(token) for window in found.training for token in window[0]}) > 5


def test_one_document_is_cut_in_three_to_train(counting: Program) -> None:
    found = token_windows("reading", [words(0, 80)], counting, DimensionRange(1, 4), training_tokens=100)
    told = [[int(token) for window in part for token in window[0]] for part in found_parts(found)]
    assert max(told[1]) < min(told[2]) < max(told[2]) < min(told[0])
    assert len(told[2]) > 2 * len(told[1])


def test_too_little_text_to_train_on_is_answered(counting: Program) -> None:
    with pytest.raises(CompilerError, match="too little text"):
        token_windows("reading", [words(0, 8), words(20, 8)], counting, ANY_LENGTH, training_tokens=100)


def found_parts(found: TokenWindows) -> tuple[tuple[torch.Tensor, ...], ...]:
    return found.scoring, found.calibration, found.training
