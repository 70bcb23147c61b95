"""Architectures read in pieces, in torch and in ONNX Runtime, against transformers reading each text at once."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
import zoo
from decoding_checks import Decoder, Run, passed, run_onnx, run_program
from torch import Tensor, nn
from zoo_architectures import GROUPED_SIZES, WINDOW, language_model

from compiler.frontends.torch_export import capture
from compiler.program import Program

TOLERANCE = 1e-4
"""Of the largest logit."""
NAMES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "falcon",
    "mixtral",
)
FAST = ("gemma2", "gpt2")
"""Between them windows, soft caps, two norms, grouped heads and learned positions."""
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
GEMMA3 = zoo.Entry(
    language_model(
        "gemma3",
        "Gemma3Text",
        {
            **GROUPED_SIZES,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"sliding_attention": ROTARY, "full_attention": {**ROTARY, "rope_theta": 100.0}},
        },
        model="Gemma3ForCausalLM",
    )
)
"""Not in the zoo: windows and full layers, each with angles of their own."""


class Case(NamedTuple):
    module: nn.Module
    program: Program


@functools.cache
def case(name: str) -> Case:
    """The model and what make-incremental makes of it, once a session."""
    if name != GEMMA3.name:
        return Case(zoo.model(name).module, passed(zoo.captured(name), "make-incremental"))
    built = GEMMA3.build()
    program = capture(built.module, built.inputs, source=name, role=GEMMA3.role, dynamic=GEMMA3.dynamic)
    return Case(built.module, passed(program, "make-incremental"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> functools._lru_cache_wrapper[tuple[Run, Run]]:
    """Both ways to run a model by its name."""

    @functools.cache
    def both(name: str) -> tuple[Run, Run]:
        program = case(name).program
        return run_program(program), run_onnx(program, tmp_path_factory.mktemp(name))

    return both


def tokens(rows: int, count: int) -> Tensor:
    return torch.randint(4, 99, (rows, count), generator=torch.Generator().manual_seed(rows * 100 + count))


def whole(name: str, text: Tensor) -> Tensor:
    """transformers' logits for a text that is read at once."""
    with torch.no_grad():
        logits: Tensor = case(name).module(text, torch.ones_like(text))
    return logits


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in (*NAMES, GEMMA3.name)]
)
class TestArchitecture:
    def test_a_prompt_in_pieces_then_token_by_token(self, name: str, runs):
        text = tokens(1, 2 * WINDOW + 4)
        expected = whole(name, text)
        for run in runs(name):
            decoder = Decoder(case(name).program, run, rows=1, capacity=24)
            pieces = text.split((5, 7, *(1,) * (text.shape[1] - 12)), dim=1)
            assert_near(torch.cat([decoder.read(piece) for piece in pieces], dim=1), expected)

    def test_rows_of_different_lengths_go_on_together(self, name: str, runs):
        lengths, steps = (5, 11, 2), 4
        texts = [tokens(1, length + steps) for length in lengths]
        expected = [whole(name, text) for text in texts]
        for run in runs(name):
            decoder = Decoder(case(name).program, run, rows=3, capacity=20)
            for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
                assert_near(decoder.read(text[:, :length], [row]), expected[row][:, :length])
            for step in range(steps):
                column = [text[:, length + step] for text, length in zip(texts, lengths, strict=True)]
                logits = decoder.read(torch.stack(column))
                for row, length in enumerate(lengths):
                    assert_near(logits[row : row + 1], expected[row][:, length + step : length + step + 1])

    def test_greedy_text_is_that_of_transformers(self, name: str, runs):
        prompt, count = tokens(1, 6), 12
        model = case(name).module.model
        mask = torch.ones_like(prompt)
        made = model.generate(prompt, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
        for run in runs(name):
            decoder = Decoder(case(name).program, run, rows=1, capacity=24)
            text, logits = prompt, decoder.read(prompt)
            while text.shape[1] < made.shape[1]:
                text = torch.cat([text, logits[:, -1:].argmax(-1)], dim=1)
                logits = decoder.read(text[:, -1:])
            assert text.tolist() == made.tolist()
