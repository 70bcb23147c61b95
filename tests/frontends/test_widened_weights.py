"""Narrow checkpoints are widened on disk; the reference is safetensors with torch's own conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compiler.frontends import widened_weights
from compiler.frontends.widened_weights import widened_checkpoint


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 700, generator=generator)
    values[0, :4] = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0])
    return {
        f"{seed}.bfloat16": values.bfloat16(),
        f"{seed}.float16": values.half(),
        f"{seed}.float32": values,
        f"{seed}.int64": torch.arange(7),
        f"{seed}.scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    }


@pytest.fixture
def eager_to_widen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small checkpoints are worth it, and are copied in many parts."""
    monkeypatch.setattr(widened_weights, "WORTHWHILE_BYTES", 1)
    monkeypatch.setattr(widened_weights, "NUMBERS_AT_ONCE", 100)


@pytest.mark.usefixtures("eager_to_widen")
@pytest.mark.parametrize("shard_count", [1, 2])
def test_numbers_are_those_of_the_checkpoint(tmp_path: Path, shard_count: int):
    names = ["model.safetensors"] if shard_count == 1 else ["a.safetensors", "b.safetensors"]
    for seed, name in enumerate(names):
        save_file(tensors(seed), tmp_path / name)
    if shard_count == 2:
        placed = {key: name for seed, name in enumerate(names) for key in tensors(seed)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with widened_checkpoint("reading", tmp_path) as folder:
        assert folder != tmp_path
        found = [load_file(folder / name) for name in names]
        assert (folder / "model.safetensors.index.json").is_file() == (shard_count == 2)
    assert not folder.exists()
    for seed, one in enumerate(found):
        expected = {
            key: value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
            for key, value in tensors(seed).items()
        }
        assert one.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(one[key], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("eager_to_widen")
def test_float32_is_mapped_where_it_stands(tmp_path: Path):
    save_file({"w": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    with widened_checkpoint("reading", tmp_path) as folder:
        assert folder == tmp_path


def test_small_checkpoints_are_read(tmp_path: Path):
    save_file(tensors(0), tmp_path / "model.safetensors")
    with widened_checkpoint("reading", tmp_path) as folder:
        assert folder == tmp_path


@pytest.mark.usefixtures("eager_to_widen")
def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_file(tensors(0), tmp_path / "model.safetensors")
    monkeypatch.setattr(widened_weights.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 0})())
    with widened_checkpoint("reading", tmp_path) as folder:
        assert folder == tmp_path


@pytest.mark.usefixtures("eager_to_widen")
def test_a_transformers_model_is_the_same(tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from compiler.frontends import LoadOptions, load_model
    from compiler.frontends.transformers_folder import TransformersFolder

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    reference = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    program = load_model(str(tmp_path), LoadOptions(), [TransformersFolder])
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(program.run(ids, mask)[0], expected, rtol=0, atol=1e-6)
    assert "the checkpoint's weights are bfloat16; the graph computes in float32" in program.notes
