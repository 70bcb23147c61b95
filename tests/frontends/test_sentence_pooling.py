from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.errors import CompilerError
from compiler.frontends import LoadOptions, load_model
from compiler.frontends.sentence_pooling import POOLINGS, read_sentence_pooling
from compiler.frontends.transformers_folder import TransformersFolder

SENTENCES = ["A cat sits.", "The longest of the three sentences has quite a few more words in it.", "Rain"]


@pytest.mark.slow
def test_minilm_gives_the_embeddings_of_sentence_transformers(minilm_folder: Path):
    from sentence_transformers import SentenceTransformer

    program = load_model(str(minilm_folder), LoadOptions(), [TransformersFolder])
    assert [str(spec) for spec in program.inputs] == [
        "input_ids: int64[batch, sequence]",
        "attention_mask: int64[batch, sequence]",
    ]
    assert [str(spec) for spec in program.outputs] == ["sentence_embedding: float32[batch, 384]"]
    assert program.role == "encoder"
    assert program.tokenizer == minilm_folder
    assert program.notes == []
    assert program.dimensions["sequence"].maximum == 512
    assert "pooler.dense.weight" not in program.weights()
    assert "encoder.layer.0.attention.self.query.weight" in program.weights()
    peer = SentenceTransformer(str(minilm_folder), device="cpu")
    texts = peer.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    (found,) = program.run(texts["input_ids"], texts["attention_mask"])
    torch.testing.assert_close(found, torch.from_numpy(peer.encode(SENTENCES)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("padding", ["right", "left"])
def test_every_pooling_against_sentence_transformers(mode: str, padding: str):
    from sentence_transformers.sentence_transformer.modules import Pooling

    hidden = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    mask = mask.flip(1) if padding == "left" else mask
    features = {"token_embeddings": hidden.clone(), "attention_mask": mask}
    expected = Pooling(4, pooling_mode=mode)(features)["sentence_embedding"]
    torch.testing.assert_close(POOLINGS[mode](hidden, mask), expected)


@pytest.fixture
def folder(minilm_folder: Path, tmp_path: Path) -> Path:
    """The small files of the real folder."""
    shutil.copytree(minilm_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "model"


def test_the_real_folders_steps(folder: Path):
    pooling = read_sentence_pooling("reading", folder)
    assert pooling is not None
    assert (pooling.modes, pooling.normalize) == (("mean",), True)


@pytest.mark.parametrize(
    ("settings", "modes"),
    [
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["max", "mean"]}, ("max", "mean")),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, ("cls", "mean")),
    ],
)
def test_settings_old_and_new(folder: Path, settings: dict[str, Any], modes: tuple[str, ...]):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    pooling = read_sentence_pooling("reading", folder)
    assert pooling is not None
    assert pooling.modes == modes


def test_a_plain_checkpoint_has_no_pooling(tmp_path: Path):
    assert read_sentence_pooling("reading", tmp_path) is None


def steps(*kinds: str) -> str:
    return json.dumps([{"type": f"sentence_transformers.models.{kind}", "path": f"{kind}"} for kind in kinds])


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("modules.json", "{", "model/modules.json is damaged"),
        ("modules.json", steps("Transformer", "Pooling", "Dense"), "has the steps Transformer, Pooling, Dense"),
        ("modules.json", steps("Transformer", "Pooling"), "Pooling/config.json is missing"),
        ("1_Pooling/config.json", '{"pooling_mode": "weightedmean"}', "the pooling weightedmean is not known"),
        ("1_Pooling/config.json", "{}", r"the pooling \(none\) is not known"),
    ],
)
def test_steps_that_are_not_known(folder: Path, file: str, content: str, problem: str):
    (folder / file).write_text(content)
    with pytest.raises(CompilerError, match=problem) as caught:
        read_sentence_pooling("reading", folder)
    assert caught.value.hint
