"""Decoder artifacts in onnxruntime-genai: it opens them, and writes what transformers writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime
import onnxruntime_genai
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from compiler.backends.onnx_runtime import OnnxRuntime, model_file
from compiler.backends.onnx_runtime.genai_config import CONFIG_NAME, TOKENIZER_SETTINGS, genai_obstacle
from compiler.evidence.data import Dataset
from compiler.frontends import LoadOptions, load_model
from compiler.program import Dimension, Program, TensorSpec
from compiler.recipe import build_passes, parse_passes
from compiler.registry import Registry
from compiler.rewriting import PassContext, Rewrite
from compiler.states import State
from compiler.target import Target

CPU = Target.parse("cpu")
VOCABULARY, CONTEXT, END = 96, 64, 2
PROMPT = [5, 17, 90, 33, 8, 61, 12]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers with random weights, large enough for its choices to differ from token to token."""
    folder = tmp_path_factory.mktemp("genai") / "checkpoint"
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=END,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w1", "eos_token": "w2"}
    (folder / TOKENIZER_SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def incremental(checkpoint: Path) -> Program:
    registry = Registry()
    program = load_model(str(checkpoint), LoadOptions(), registry.frontends().values())
    for one in build_passes(
        parse_passes("canonicalize,fuse,make-incremental"), registry.passes(), registry.pipelines()
    ):
        assert isinstance(one, Rewrite)
        one.rewrite(program, PassContext(CPU, Dataset("none", (), ())))
    return program


@pytest.fixture(scope="module")
def folder(incremental: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the backend writes."""
    written = tmp_path_factory.mktemp("lowered")
    lowered = OnnxRuntime().lower(incremental, CPU, written)
    assert {CONFIG_NAME, TOKENIZER_SETTINGS} <= set(lowered.files)
    return written


def test_genai_chooses_the_tokens_of_transformers(folder: Path, checkpoint: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    prompt = torch.tensor([PROMPT])
    written = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_length=CONTEXT, do_sample=False, pad_token_id=END
    )
    expected = written[0, len(PROMPT) :].tolist()
    generator = _generator(folder)
    generator.append_tokens(PROMPT)
    found = []
    while not generator.is_done():
        found.append(_next_token(generator))
    assert found == expected
    assert len(set(found)) > 3
    assert found[-1] == END or len(PROMPT) + len(found) == CONTEXT

    generator.rewind_to(len(PROMPT))
    generator.append_tokens(found[:5])
    assert _next_token(generator) == found[5]


def test_genai_maps_weights_that_stand_beside_the_graph(
    incremental: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "MAPPED_ABOVE_BYTES", 1000)
    assert model_file.WEIGHTS_FILE in OnnxRuntime().lower(incremental, CPU, tmp_path).files
    found = []
    for one in (folder, tmp_path):
        generator = _generator(one)
        generator.append_tokens(PROMPT)
        found.append([_next_token(generator) for _ in range(5)])
    assert found[0] == found[1]


def test_browsers_get_one_file(incremental: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "MAPPED_ABOVE_BYTES", 1000)
    assert model_file.WEIGHTS_FILE not in OnnxRuntime().lower(incremental, Target.parse("wasm"), tmp_path).files


def test_positions_may_be_left_out_of_the_file(folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    tokens = torch.tensor([PROMPT]).numpy()
    feeds = {"input_ids": tokens, "attention_mask": (tokens > 0).astype("int64")}
    feeds |= {
        value.name: torch.zeros(1, value.shape[1], len(PROMPT), value.shape[3]).numpy()
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    (last,) = session.run(["logits"], feeds)
    (every,) = session.run(["logits"], feeds | {"logit_positions": torch.arange(len(PROMPT)).numpy()})
    assert last.shape == (1, 1, VOCABULARY)
    assert every.shape == (1, len(PROMPT), VOCABULARY)
    assert abs(every[:, -1:] - last).max() < 1e-5


def _without_end(program: Program) -> Program:
    return replace(program, tokenizer=None)


def _of_unknown_length(program: Program) -> Program:
    return replace(program, context_length=None)


def _with_another_input(program: Program) -> Program:
    extra = TensorSpec("image", "float32", (Dimension("batch"), 3))
    return replace(program, inputs=(*program.inputs, extra))


def _with_a_recurrent_state(program: Program) -> Program:
    return replace(program, states=(*program.states, State("past_state.0", "present_state.0")))


def _with_caches_of_two_forms(program: Program) -> Program:
    *others, last = program.inputs
    return replace(program, inputs=(*others, replace(last, shape=(*last.shape[:3], 8))))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_end, "it has no token that ends a text"),
        (_of_unknown_length, "it does not say how many tokens it was made for"),
        (_with_another_input, "it reads image"),
        (_with_a_recurrent_state, "it keeps states other than keys and values"),
        (_with_caches_of_two_forms, "its layers keep caches of several forms"),
    ],
)
def test_obstacles(incremental: Program, change: Callable[[Program], Program], reason: str) -> None:
    assert genai_obstacle(incremental) is None
    assert genai_obstacle(change(incremental)) == reason


def test_an_obstacle_becomes_a_note(incremental: Program, tmp_path: Path) -> None:
    lowered = OnnxRuntime().lower(_without_end(incremental), CPU, tmp_path)
    assert lowered.files == ("model.onnx",)
    assert "onnxruntime-genai cannot open it: it has no token that ends a text" in lowered.notes


def _generator(folder: Path) -> onnxruntime_genai.Generator:
    model = onnxruntime_genai.Model(str(folder))
    options = onnxruntime_genai.GeneratorParams(model)
    options.set_search_options(max_length=CONTEXT, do_sample=False)
    return onnxruntime_genai.Generator(model, options)


def _next_token(generator: onnxruntime_genai.Generator) -> int:
    generator.generate_next_token()
    return int(generator.get_next_tokens()[0])
