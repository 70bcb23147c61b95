from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compiler.errors import CompilerError
from compiler.frontends import LoadOptions, load_model
from compiler.frontends.dynamic_dims import resized
from compiler.frontends.module_outputs import named_tensors
from compiler.frontends.transformers_folder import TransformersFolder
from compiler.program import Dimension, Program

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TEXT = {**TINY, "vocab_size": 60, "max_position_embeddings": 40}


def load(folder: Path, *inputs: str, allow_pickle: bool = False) -> Program:
    return load_model(str(folder), LoadOptions(inputs, allow_pickle), [TransformersFolder])


def tiny(class_name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    cls = getattr(transformers, class_name)
    return cls(cls.config_class(**settings)).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny("LlamaForCausalLM", **TEXT, num_key_value_heads=2, tie_word_embeddings=True),
    "bert": lambda: tiny("BertModel", **TEXT),
    "bert classifier": lambda: tiny("BertForSequenceClassification", **TEXT, num_labels=3),
    "t5": lambda: tiny(
        "T5ForConditionalGeneration", vocab_size=60, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4
    ),
    "whisper": lambda: tiny(
        "WhisperForConditionalGeneration",
        vocab_size=60,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        num_mel_bins=8,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=20,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "vit": lambda: tiny("ViTForImageClassification", **TINY, image_size=16, patch_size=8, num_labels=3),
    "clip": lambda: tiny(
        "CLIPModel",
        text_config={**TEXT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
        vision_config={**TINY, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    ),
    "mixtral": lambda: tiny("MixtralForCausalLM", **TEXT, num_key_value_heads=2, num_local_experts=4),
    "resnet": lambda: tiny(
        "ResNetForImageClassification", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3
    ),
}
ROLES = {
    "llama": "causal-lm",
    "mixtral": "causal-lm",
    "bert": "encoder",
    "clip": "encoder",
    "t5": "seq2seq",
    "whisper": "seq2seq",
}
INPUTS = {
    "llama": "input_ids: int64[batch, sequence], attention_mask: int64[batch, sequence]",
    "bert": "input_ids: int64[batch, sequence], attention_mask: int64[batch, sequence]",
    "bert classifier": (
        "input_ids: int64[batch, sequence], attention_mask: int64[batch, sequence],"
        " token_type_ids: int64[batch, sequence]"
    ),
    "t5": (
        "input_ids: int64[batch, sequence], attention_mask: int64[batch, sequence],"
        " decoder_input_ids: int64[batch, decoder_sequence]"
    ),
    "whisper": "input_features: float32[batch, 8, 40], decoder_input_ids: int64[batch, decoder_sequence]",
    "clip": (
        "input_ids: int64[batch, sequence], attention_mask: int64[batch, sequence],"
        " pixel_values: float32[images, 3, 16, 16]"
    ),
    "mixtral": "input_ids: int64[batch, sequence], attention_mask: int64[batch, sequence]",
    "vit": "pixel_values: float32[batch, 3, 16, 16]",
    "resnet": "pixel_values: float32[batch, 3, 224, 224]",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_comes_back_with_its_numbers(kind: str, tmp_path: Path):
    model = MODELS[kind]()
    model.save_pretrained(tmp_path)
    program = load(tmp_path)
    assert ", ".join(map(str, program.inputs)) == INPUTS[kind]
    assert program.role == ROLES.get(kind, "classifier")
    assert program.source == "/".join(tmp_path.parts[-2:])
    names = [spec.name for spec in program.inputs]
    dims = {
        spec.name: {i: dim.name for i, dim in enumerate(spec.shape) if isinstance(dim, Dimension)}
        for spec in program.inputs
    }
    inputs = resized(dict(zip(names, program.example_inputs, strict=True)), dims, {"batch": 3, "sequence": 13})
    with torch.no_grad():
        expected = model(**inputs)
    for spec, found in zip(program.outputs, program.run(*inputs.values()), strict=True):
        wanted = named_tensors(expected)[spec.name]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert set(program.weights()) <= set(dict(model.named_parameters()) | dict(model.named_buffers()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny-llama"
    MODELS["llama"]().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint that the test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def error_for(folder: Path, **options: Any) -> CompilerError:
    with pytest.raises(CompilerError) as caught:
        load(folder, **options)
    assert caught.value.doing == f"reading model {str(folder)!r}"
    assert caught.value.hint
    assert "\n" not in f"{caught.value}{caught.value.hint}"
    return caught.value


def test_truncated_weights(folder: Path):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    error = error_for(folder)
    assert error.problem.startswith("model.safetensors is truncated or damaged")
    assert f"{len(whole) // 2:,} bytes" in error.hint


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00not json"])
def test_damaged_weights(folder: Path, content: bytes):
    (folder / "model.safetensors").write_bytes(content)
    assert error_for(folder).problem.startswith("model.safetensors is truncated or damaged")


def test_weights_of_another_shape_than_the_config(folder: Path):
    edit_config(folder, intermediate_size=20)
    problem = error_for(folder).problem
    assert "mlp.down_proj.weight is [16, 24] in the checkpoint and [16, 20] by the config, and 5 more" in problem


@pytest.mark.slow
def test_weights_that_the_config_asks_for_and_the_checkpoint_lacks(folder: Path):
    edit_config(folder, num_hidden_layers=3)
    assert error_for(folder).problem == (
        "9 weights (model.layers.2.input_layernorm.weight, ...) that the config asks for are not in the checkpoint"
    )


def test_weights_that_the_config_has_no_place_for(folder: Path):
    edit_config(folder, num_hidden_layers=1)
    problem = error_for(folder).problem
    assert problem.startswith("the checkpoint holds 9 weights (model.layers.1.")
    assert problem.endswith("that the config has no place for")


@pytest.mark.slow
def test_one_missing_weight(folder: Path):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert error_for(folder).problem.startswith("1 weights (model.norm.weight) that the config asks for")


@pytest.mark.slow
def test_a_head_of_another_task_is_left_out(folder: Path):
    edit_config(folder, architectures=["LlamaModel"])
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "score.weight": torch.ones(2, 16)}, folder / "model.safetensors", {"format": "pt"})
    assert [spec.name for spec in load(folder).outputs] == ["last_hidden_state"]


def test_no_weights_at_all(folder: Path):
    (folder / "model.safetensors").unlink()
    assert error_for(folder).problem == "the folder has no weights"


def test_a_missing_shard(folder: Path):
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert error_for(folder).problem == "the weight file 'model-00001-of-00002.safetensors' is missing"


@pytest.mark.slow
def test_shards(tmp_path: Path):
    model = MODELS["llama"]()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    program = load(tmp_path)
    ids = torch.randint(0, 60, (1, 7))
    found = program.run(ids, torch.ones_like(ids))[0]
    torch.testing.assert_close(found, model(ids).logits.detach(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_pickled_weights_need_leave(folder: Path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    error = error_for(folder)
    assert error.problem.startswith("pytorch_model.bin is a pickle")
    assert "--allow-pickle" in error.hint
    assert load(folder, allow_pickle=True).role == "causal-lm"


@pytest.mark.parametrize(
    ("changes", "problem", "hint"),
    [
        ({"model_type": "lama"}, "transformers knows no model type 'lama'", "Did you mean 'llama'?"),
        ({"architectures": ["LlamaForCausaLM"]}, "has no architecture 'LlamaForCausaLM'", "'LlamaForCausalLM'?"),
        ({"architectures": ["os"]}, "transformers has no architecture 'os'", "never run"),
        ({"num_attention_heads": 0}, "", "config"),
        ({"hidden_size": "wide"}, "config.json does not fit model type 'llama'", "config"),
    ],
)
def test_configs_that_name_no_model(folder: Path, changes: dict[str, Any], problem: str, hint: str):
    edit_config(folder, **changes)
    error = error_for(folder)
    assert problem in error.problem
    assert hint in error.hint


@pytest.mark.parametrize("content", ["{", "[1]", "{}", "\x00"])
def test_a_config_that_is_none(folder: Path, content: str):
    (folder / "config.json").write_text(content)
    assert error_for(folder).problem.startswith("config.json is ")


def test_code_that_comes_with_a_checkpoint_is_not_run(folder: Path):
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    (folder / "code.py").write_text(f"open({str(folder / 'sprung')!r}, 'w')\n")
    assert "never run" in error_for(folder).hint
    assert not (folder / "sprung").exists()


@pytest.mark.slow
def test_half_precision_is_computed_in_float32_and_said_to_be(tmp_path: Path):
    MODELS["bert"]().half().save_pretrained(tmp_path)
    program = load(tmp_path)
    assert {tensor.dtype for tensor in program.weights().values() if tensor.is_floating_point()} == {torch.float32}
    assert any("float16" in note for note in program.notes)


@pytest.mark.slow
def test_stated_inputs_open_other_dims(tmp_path: Path):
    MODELS["resnet"]().save_pretrained(tmp_path)
    program = load(tmp_path, "pixel_values=float32[batch,3,height:64,width:96]")
    assert [str(spec) for spec in program.inputs] == ["pixel_values: float32[batch, 3, height, width]"]
    assert program.run(torch.randn(1, 3, 32, 40))[0].shape == (1, 3)


@pytest.mark.slow
def test_nothing_is_printed_and_settings_are_put_back(saved: Path, capfd: pytest.CaptureFixture[str]):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(saved)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")
