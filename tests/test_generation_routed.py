"""A small llama with routers, compiled with states, against the routed model over whole sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from decoding_checks import passed
from given_routers import GivenRouters, RegistryWithRouters
from rewrite_checks import context_of

from compiler.compile_model import compile_model
from compiler.frontends import LoadOptions, load_model
from compiler.grafting import apply_graft
from compiler.recipe import Recipe, parse_passes
from compiler.runtime.generation.decoder import Decoder
from compiler.runtime.verify import verify

VOCABULARY, NEW_TOKENS = 64, 20


@pytest.mark.slow
def test_greedy_tokens_are_those_of_the_routed_model(tmp_path: Path) -> None:
    """Rows of a decoder, whose routers choose differently, one of them before its router is done."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(tmp_path / "model")
    registry = RegistryWithRouters(entry_points=False)
    recipe = Recipe(str(tmp_path / "model"), parse_passes("given-routers:window=8:sinks=2:context=20,make-incremental"))
    compile_model(recipe, tmp_path / "out", registry=registry)
    assert verify(tmp_path / "out").passed
    fused = passed(
        load_model(str(tmp_path / "model"), LoadOptions(), registry.frontends().values()), "canonicalize,fuse"
    )
    routed, _ = apply_graft(GivenRouters(window=8, sinks=2, context=20), fused, (), context_of(fused))

    def expected(prompt: list[int], chosen: list[int]) -> list[int]:
        """The likeliest token after the prompt and after each of `chosen` but the last."""
        text = torch.tensor([prompt + chosen[:-1]])
        logits = routed.run(*(text, torch.ones_like(text))[: len(routed.inputs)])[0]
        return logits[0, len(prompt) - 1 :].argmax(-1).tolist()

    prompts = [np.random.default_rng(seed).integers(0, VOCABULARY, 5 + 90 * seed).tolist() for seed in range(3)]
    decoder = Decoder.open(tmp_path / "out", rows=len(prompts), threads=1)
    assert decoder.recurrent
    decoder.prefill(1, prompts[2])
    decoder.clear(1)  # what another text left in the states is gone
    found = [[int(decoder.prefill(row, prompt).argmax())] for row, prompt in enumerate(prompts)]
    for _ in range(NEW_TOKENS - 1):
        for tokens, logits in zip(found, decoder.decode([tokens[-1] for tokens in found]), strict=True):
            tokens.append(int(logits.argmax()))
    assert found == [expected(prompt, tokens) for prompt, tokens in zip(prompts, found, strict=True)]
