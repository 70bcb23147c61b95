"""A small random llama, compiled with states, against transformers' own generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compiler.compile_model import compile_model
from compiler.recipe import Recipe, parse_passes
from compiler.runtime.generation.decoder import Decoder
from compiler.runtime.verify import verify

VOCABULARY, NEW_TOKENS = 64, 40


@pytest.mark.slow
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    result = compile_model(Recipe(str(tmp_path / "model"), parse_passes("make-incremental")), tmp_path / "out")
    assert result.manifest is not None
    assert result.manifest.generation is not None
    assert result.manifest.generation.context_length == 128
    assert verify(tmp_path / "out").passed
    prompts = [np.random.default_rng(seed).integers(0, VOCABULARY, 5 + 9 * seed).tolist() for seed in range(3)]
    decoder = Decoder.open(tmp_path / "out", rows=len(prompts), threads=1)
    found = [[int(decoder.prefill(row, prompt).argmax())] for row, prompt in enumerate(prompts)]
    for _ in range(NEW_TOKENS - 1):
        for tokens, logits in zip(found, decoder.decode([tokens[-1] for tokens in found]), strict=True):
            tokens.append(int(logits.argmax()))
    for prompt, tokens in zip(prompts, found, strict=True):
        given = torch.tensor([prompt])
        expected = model.generate(given, max_new_tokens=NEW_TOKENS, do_sample=False, attention_mask=given * 0 + 1)
        assert tokens == expected[0, len(prompt) :].tolist()
