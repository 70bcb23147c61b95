"""Reads tokens call by call with an incremental Program or its ONNX file, feeding each present back as the past."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rewrite_checks import context_of
from torch import Tensor

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.grafting import apply_graft
from compiler.program import Program
from compiler.recipe import build_passes, parse_passes
from compiler.registry import Registry
from compiler.rewriting import Graft, Rewrite
from compiler.runtime.generation import decoder as runtime
from compiler.states import BATCH, CAPACITY, KEPT_POSITIONS, MASK, TOKENS
from compiler.target import Target

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""From inputs to outputs, by name."""


def passed(program: Program, passes: str) -> Program:
    """What passes, written as on the command line, make of `program`; no evidence is taken."""
    registry = Registry(entry_points=False)
    context = context_of(program)
    for one in build_passes(parse_passes(passes), registry.passes(), registry.pipelines()):
        if isinstance(one, Graft):
            program, _ = apply_graft(one, program, (), context)
            continue
        assert isinstance(one, Rewrite)
        program = program.copy()
        result = one.rewrite(program, context)
        assert not (one.whole_model and result.refusals), f"{one.name}: {result.refusals[0]}"
        program.refresh()
    return program


def run_program(program: Program) -> Run:
    """Evaluates in torch."""
    inputs, outputs = ([spec.name for spec in specs] for specs in (program.inputs, program.outputs))
    return lambda given: dict(zip(outputs, program.run(*(given[name] for name in inputs)), strict=True))


def run_onnx(program: Program, folder: Path) -> Run:
    """Lowers into `folder` and evaluates with ONNX Runtime."""
    import onnxruntime

    OnnxRuntime().lower(program, Target.parse("cpu"), folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # others would spin between calls, beside the tests of another process
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(given: dict[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(names, {name: tensor.numpy() for name, tensor in given.items()})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))

    return run


class Decoder:
    """Rows of text that grow: `lengths` are the tokens that each has been given."""

    def __init__(self, program: Program, run: Run, rows: int, capacity: int) -> None:
        self.run = run
        self.lengths = torch.zeros(rows, dtype=torch.int64)
        sizes = {BATCH: rows, CAPACITY: capacity}
        shapes = {
            spec.name: ([dim if isinstance(dim, int) else sizes[dim.name] for dim in spec.shape], spec.dtype)
            for spec in program.inputs
            if spec.name in {state.past for state in program.states}
        }
        self.states = {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (shape, dtype) in shapes.items()}
        self.presents = {state.past: state.present for state in program.states}

    def read(self, tokens: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Give `tokens` [rows, n] to `rows`, all by default: their logits [rows, n, vocabulary]."""
        chosen = torch.arange(len(self.lengths)) if rows is None else torch.tensor(rows)
        self.lengths[chosen] += tokens.shape[1]
        lengths = self.lengths[chosen]
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        given = {TOKENS: tokens, MASK: mask.long(), KEPT_POSITIONS: torch.arange(tokens.shape[1])}
        found = self.run(given | {name: state[chosen] for name, state in self.states.items()})
        for past, present in self.presents.items():
            self.states[past][chosen] = found[present]
        return found["logits"]


def assert_decodes_greedily(folder: Path, model: Program, vocabulary: int, new_tokens: int = 20) -> None:
    """Rows of a decoder, which read prompts of 5, 95 and 185 tokens, write what `model` finds likeliest after each."""

    def expected(prompt: list[int], chosen: list[int]) -> list[int]:
        """The likeliest token after the prompt and after each of `chosen` but the last."""
        text = torch.tensor([prompt + chosen[:-1]])
        logits = model.run(*(text, torch.ones_like(text))[: len(model.inputs)])[0]
        return logits[0, len(prompt) - 1 :].argmax(-1).tolist()

    prompts = [np.random.default_rng(seed).integers(0, vocabulary, 5 + 90 * seed).tolist() for seed in range(3)]
    decoder = runtime.Decoder.open(folder, rows=len(prompts), threads=1)
    assert decoder.recurrent
    decoder.prefill(1, prompts[2])
    decoder.clear(1)  # what another text left in the states is gone
    found = [[int(decoder.prefill(row, prompt).argmax())] for row, prompt in enumerate(prompts)]
    for _ in range(new_tokens - 1):
        for tokens, logits in zip(found, decoder.decode([tokens[-1] for tokens in found]), strict=True):
            tokens.append(int(logits.argmax()))
    assert found == [expected(prompt, tokens) for prompt, tokens in zip(prompts, found, strict=True)]


def saved_llama(folder: Path, vocabulary: int) -> str:
    """A small llama with random weights, which stands in `folder` then."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return str(folder)
