"""The decoder on a small hand-made artifact, against the same decoder in plain numpy over whole sequences."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession
from small_artifact import write_linear
from small_decoder import CONTEXT, HEAD_DIM, KV_HEADS, VOCABULARY, SmallDecoder, write_decoder

from compiler.errors import CompilerError
from compiler.runtime.bench import BenchOptions, bench
from compiler.runtime.generation.decoder import CHUNK, Decoder
from compiler.runtime.generation.state_buffers import FIRST_CAPACITY
from compiler.runtime.manifest import read_manifest
from compiler.runtime.verify import verify

KINDS = {"attention": False, "hybrid": True}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Attention alone, or attention and a recurrent layer."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of that kind."""
    base = tmp_path_factory.mktemp(kind)
    write_decoder(base / "out", base / "model", recurrent=KINDS[kind])
    return base / "out"


@pytest.fixture(scope="module")
def reference(kind: str) -> SmallDecoder:
    """The same in numpy."""
    return SmallDecoder(recurrent=KINDS[kind])


def text(seed: int, count: int) -> list[int]:
    """Random token ids."""
    return [int(token) for token in np.random.default_rng(seed).integers(2, VOCABULARY, count)]


def assert_logits(found: np.ndarray, reference: SmallDecoder, tokens: list[int]) -> None:
    """The logits after `tokens` are those of the reference, to rounding."""
    np.testing.assert_allclose(found, reference.logits(tokens)[-1], atol=2e-5)


def test_a_prompt_then_token_by_token(folder: Path, reference: SmallDecoder) -> None:
    decoder, tokens = Decoder.open(folder, threads=1), text(0, 12)
    assert_logits(decoder.prefill(0, tokens[:7]), reference, tokens[:7])
    for count in range(8, 13):
        assert_logits(decoder.decode([tokens[count - 1]])[0], reference, tokens[:count])
    assert decoder.lengths == [12]


def test_a_prompt_in_chunks_of_any_size(folder: Path, reference: SmallDecoder) -> None:
    decoder, tokens = Decoder.open(folder, threads=1), text(1, 23)
    for start, stop in ((0, 1), (1, 10), (10, 12), (12, 23)):
        found = decoder.extend(0, tokens[start:stop])
        assert_logits(found[-1], reference, tokens[:stop])


def test_several_logits_of_a_file_that_states_one_row(folder: Path, reference: SmallDecoder) -> None:
    """As files do that open in onnxruntime-genai too."""
    model = onnx.load(folder / "model.onnx")
    rows = model.graph.output[0].type.tensor_type.shape.dim[1]
    assert rows.dim_param == "kept"
    rows.dim_value = 1
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    decoder, tokens = Decoder(read_manifest(folder), session, 1), text(9, 12)
    for _ in range(2):
        decoder.clear(0)
        for start, stop in ((0, 5), (5, 10)):
            found = decoder.extend(0, tokens[start:stop], kept=3)
            np.testing.assert_allclose(found, reference.logits(tokens[:stop])[-3:], atol=2e-5)
        assert_logits(decoder.extend(0, tokens[10:11])[-1], reference, tokens[:11])


def test_a_prompt_longer_than_a_chunk_and_than_the_first_buffers(folder: Path, reference: SmallDecoder) -> None:
    decoder, tokens = Decoder.open(folder, threads=1), text(2, CONTEXT)
    assert max(CHUNK, FIRST_CAPACITY) < CONTEXT - 1
    assert_logits(decoder.prefill(0, tokens[:-1]), reference, tokens[:-1])
    assert_logits(decoder.decode(tokens[-1:])[0], reference, tokens)
    with pytest.raises(CompilerError, match=f"{CONTEXT + 1} tokens are more than the {CONTEXT}"):
        decoder.decode([5])


def test_buffers_grow_while_rows_of_different_length_advance(folder: Path, reference: SmallDecoder) -> None:
    decoder = Decoder.open(folder, rows=3, threads=1)
    texts = [text(3, 3), text(4, FIRST_CAPACITY - 2), text(5, 40)]
    small = decoder.state_bytes
    for row, tokens in enumerate(texts):
        decoder.prefill(row, tokens)
    for step in range(4):
        for row, tokens in enumerate(texts):
            tokens.append(2 + (7 * step + row) % 60)
        found = decoder.decode([tokens[-1] for tokens in texts])
        for row, tokens in enumerate(texts):
            assert_logits(found[row], reference, tokens)
    assert decoder.state_bytes > small


def test_a_row_is_moved_and_cleared(folder: Path, reference: SmallDecoder) -> None:
    decoder, first, second = Decoder.open(folder, rows=3, threads=1), text(6, 5), text(7, 9)
    decoder.prefill(0, text(8, 30))
    decoder.prefill(2, second)
    decoder.move(2, 0)
    decoder.clear(1)
    decoder.prefill(1, first)
    decoder.prefill(2, text(9, 4))
    found = decoder.decode([11, 12])
    assert_logits(found[0], reference, [*second, 11])
    assert_logits(found[1], reference, [*first, 12])


def test_states_are_written_where_they_are_read(folder: Path, kind: str) -> None:
    decoder = Decoder.open(folder, rows=2, threads=1)
    decoder.prefill(0, text(10, 5))
    with_room = [state for state in decoder._buffers.states if state.room is not None]
    assert len(with_room) == (2 if kind == "hybrid" else 4)
    for state in with_room:
        assert np.abs(state.array[0, :, :5]).min() > 0
        assert np.abs(state.array[:, :, 5:]).max() == 0


def test_tokens_are_taken_back(folder: Path, kind: str, reference: SmallDecoder) -> None:
    decoder, tokens = Decoder.open(folder, threads=1), text(11, 9)
    if kind == "hybrid":
        assert decoder.recurrent
        return
    decoder.prefill(0, tokens)
    found = decoder.extend(0, text(12, 6), kept=6)
    np.testing.assert_allclose(found, reference.logits([*tokens, *text(12, 6)])[-6:], atol=2e-5)
    decoder.take_back(0, len(tokens))
    assert_logits(decoder.decode([33])[0], reference, [*tokens, 33])


def test_verify_and_bench_take_it_as_any_artifact(folder: Path) -> None:
    assert verify(folder).passed
    report = bench(folder, BenchOptions({}, threads=1, rounds=1))
    assert report.sides[0].latency_seconds.median > 0
    step = BenchOptions({"batch": 3, "sequence": 1, "total_sequence": 40}, threads=1, rounds=1)
    shapes = bench(folder, step).shapes
    assert (shapes["input_ids"], shapes["attention_mask"]) == ((3, 1), (3, 40))
    assert shapes["past_key_values.0.key"] == (3, KV_HEADS, 40, HEAD_DIM)
    prompt = bench(folder, BenchOptions({"sequence": 30}, threads=1, rounds=1)).shapes
    assert prompt["attention_mask"] == (2, 30)


def test_what_does_not_generate_is_refused(tmp_path: Path) -> None:
    write_linear(tmp_path / "linear")
    with pytest.raises(CompilerError, match="it writes no text"):
        Decoder.open(tmp_path / "linear")


def test_an_empty_prompt_is_refused(folder: Path) -> None:
    with pytest.raises(CompilerError, match="it has no token"):
        Decoder.open(folder, threads=1).prefill(0, [])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_room_of_an_ended_text_goes_back_to_the_system(folder: Path) -> None:
    decoder = Decoder.open(folder, rows=2, threads=1)
    decoder.prefill(0, text(12, CONTEXT - 1))
    decoder.prefill(1, text(13, CONTEXT - 1))
    shared = [state.array for state in decoder._buffers.states if state.room is not None]
    kept = [array[1].copy() for array in shared]
    decoder.clear(0)
    for array, other in zip(shared, kept, strict=True):
        assert np.count_nonzero(array[0]) * array.itemsize < 2 * mmap.PAGESIZE
        np.testing.assert_array_equal(array[1], other)
