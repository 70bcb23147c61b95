"""Quantized GGUF files come in block for block; the reference is transformers on gguf's own dequantized numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM

from compiler.frontends import LoadOptions, load_model
from compiler.frontends.gguf_blocks import read_blocks
from compiler.frontends.gguf_file import GgufFile
from compiler.program import Program

HEADS, KV_HEADS, HIDDEN, VOCABULARY = 4, 2, 64, 96
LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def interleaved(matrix: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows as llama.cpp's rotary embedding wants them: the two halves of each head take turns."""
    halves = matrix.reshape(heads, 2, -1, matrix.shape[1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(matrix.shape)


def write_llama(path: Path, layers: Kind, table: Kind, *, tied: bool = True, whole: bool = False) -> LlamaForCausalLM:
    """Write a tiny llama whose matrices are of the given kinds; the model with the numbers that the file stands for.

    With `whole`, four-bit blocks get minima that are multiples of their scales.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    state = model.state_dict()

    def store(name: str, key: str, kind: Kind) -> None:
        matrix = state[key].numpy()
        heads = HEADS if ".attn_q." in name else KV_HEADS if ".attn_k." in name else 0
        rows = interleaved(matrix, heads) if heads else matrix
        packed = gguf.quants.quantize(rows, kind)
        if whole and kind == Kind.Q4_1:
            halves = packed.reshape(-1, 20)[:, :4].view(np.float16)
            halves[:, 1] = -halves[:, 0] * np.float16(8)
        values = gguf.quants.dequantize(packed, kind)
        if heads:
            values = values.reshape(heads, -1, 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)
        state[key].copy_(torch.from_numpy(values))
        writer.add_tensor(name, packed, raw_dtype=kind)

    store("token_embd.weight", "model.embed_tokens.weight", table)
    if not tied:
        store("output.weight", "lm_head.weight", table)
    store("output_norm.weight", "model.norm.weight", Kind.F32)
    for layer in range(config.num_hidden_layers):
        for theirs, ours in LINEARS.items():
            store(f"blk.{layer}.{theirs}.weight", f"model.layers.{layer}.{ours}.weight", layers)
        for theirs, ours in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            store(f"blk.{layer}.{theirs}.weight", f"model.layers.{layer}.{ours}.weight", Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def load(path: Path) -> Program:
    return load_model(str(path), LoadOptions(), [GgufFile])


def operators(program: Program) -> list[str]:
    return [str(node.target).split(".")[1] for node in program.graph.nodes if "quantized" in str(node.target)]


def assert_same_logits(program: Program, model: LlamaForCausalLM) -> None:
    ids = torch.arange(40).reshape(2, 20) * 7 % VOCABULARY
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    (found,) = program.run(ids, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()) * 5)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
@pytest.mark.parametrize("shape", [(3, 32), (5, 96)])
def test_blocks_stand_for_what_gguf_says(kind: Kind, shape: tuple[int, int]):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix[0, :32] = 0.5  # a block of one value: its scale is zero in Q4_1
    packed = gguf.quants.quantize(matrix, kind)
    expected = torch.from_numpy(gguf.quants.dequantize(packed, kind))
    found = read_blocks(packed, kind.name)
    torch.testing.assert_close(found.values(), expected, rtol=0, atol=1e-6)
    assert found.weight.shape == (shape[0], shape[1] // 32, 16 if found.bits == 4 else 32)
    if kind != Kind.Q4_1:
        assert torch.equal(found.values(), expected)
        assert found.zero_points is None


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
class TestModels:
    def test_its_numbers_are_those_of_the_file(self, tmp_path: Path, kind: Kind):
        model = write_llama(tmp_path / "m.gguf", kind, Kind.Q8_0)
        program = load(tmp_path / "m.gguf")
        assert operators(program).count("quantized_linear") == 8
        assert operators(program).count("quantized_embedding") == 1
        assert_same_logits(program, model)

    def test_tied_codes_are_stored_once(self, tmp_path: Path, kind: Kind):
        write_llama(tmp_path / "m.gguf", kind, Kind.Q8_0)
        weights = load(tmp_path / "m.gguf").weights()
        tables = [name for name, tensor in weights.items() if len(tensor) == VOCABULARY]
        assert sorted(tables) == ["model.embed_tokens.scales", "model.embed_tokens.weight"]
        assert weights["model.embed_tokens.weight"].dtype == torch.uint8


def test_what_is_no_block_format_of_ours_stays_float(tmp_path: Path):
    model = write_llama(tmp_path / "m.gguf", Kind.Q4_0, Kind.Q5_0, tied=False)
    program = load(tmp_path / "m.gguf")
    assert operators(program) == ["quantized_linear"] * 7
    assert program.weight("lm_head.weight").dtype == torch.float32
    assert [note for note in program.notes if "quantized tensors" in note] == [
        "quantized tensors stay as they are in the file, block for block: 7 Q4_0 (dequantize gives floats)",
        "quantized tensors whose blocks no kernel reads are floats here: 2 Q5_0",
    ]
    assert_same_logits(program, model)


def test_zero_points_that_are_whole_are_codes(tmp_path: Path):
    model = write_llama(tmp_path / "m.gguf", Kind.Q4_1, Kind.Q4_1, whole=True)
    program = load(tmp_path / "m.gguf")
    assert operators(program).count("quantized_embedding") == 1
    assert program.weight("model.layers.0.mlp.down_proj.zero_points").dtype == torch.uint8
    assert_same_logits(program, model)


def test_a_table_between_codes_stays_float(tmp_path: Path):
    model = write_llama(tmp_path / "m.gguf", Kind.Q4_1, Kind.Q4_1)
    program = load(tmp_path / "m.gguf")
    assert operators(program) == ["quantized_linear"] * 7
    assert program.weight("model.layers.0.mlp.down_proj.zero_points").dtype == torch.float32
    assert program.weight("model.embed_tokens.weight").dtype == torch.float32
    assert_same_logits(program, model)


def test_a_file_of_floats_has_nothing_to_say(tmp_path: Path):
    model = write_llama(tmp_path / "m.gguf", Kind.F16, Kind.F16)
    program = load(tmp_path / "m.gguf")
    assert operators(program) == []
    assert not [note for note in program.notes if "quantized tensors" in note]
    assert_same_logits(program, model)
