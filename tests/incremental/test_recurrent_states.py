"""A model of the dialect's recurrent operators beside attention: their states go from call to call as keys do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoding_checks import Decoder, passed, run_onnx, run_program
from torch import Tensor, nn

from compiler.frontends.torch_export import capture
from compiler.ops.causal_conv import causal_conv
from compiler.ops.linear_attention import linear_attention
from compiler.program import Program

VOCABULARY, WIDTH, HEADS = 41, 32, 2


class Hybrid(nn.Module):
    """A short convolution, gated delta rule over it, then softmax attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.short = nn.Parameter(0.3 * torch.randn(WIDTH, 1, 4))
        self.recurrent, self.attending = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.gates = nn.Linear(WIDTH, 2 * HEADS)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.table(input_ids)
        mixed, _ = causal_conv(hidden.transpose(1, 2), self.short, None, None, "silu")
        hidden = hidden + mixed.transpose(1, 2)
        query, key, value = self.recurrent(hidden).chunk(3, dim=-1)
        decay, beta = self.gates(hidden).chunk(2, dim=-1)
        decay, beta = -nn.functional.softplus(decay), beta.sigmoid()
        remembered, _ = linear_attention(query, 0.3 * key, value, None, decay, beta, HEADS, HEADS, "gated_delta", 0.0)
        hidden = hidden + remembered
        heads = (one.unflatten(2, (HEADS, -1)).transpose(1, 2) for one in self.attending(hidden).chunk(3, dim=-1))
        attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.head(hidden + attended.transpose(1, 2).flatten(2))


@pytest.fixture(scope="module")
def captured() -> Program:
    torch.manual_seed(0)
    inputs = {"input_ids": tokens(2, 12)}
    dynamic = {"input_ids": {0: "batch", 1: "sequence"}}
    return capture(Hybrid().eval(), inputs, source="hybrid", role="causal-lm", dynamic=dynamic)


@pytest.fixture(scope="module")
def program(captured: Program) -> Program:
    return passed(captured, "make-incremental")


def tokens(rows: int, count: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, count), generator=torch.Generator().manual_seed(count))


def test_states_have_fixed_sizes_and_names_of_their_own(program: Program):
    shapes = {spec.name: str(spec) for spec in (*program.inputs, *program.outputs)}
    assert [(state.past, state.present) for state in program.states] == [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.0.value", "present.0.value"),
        ("past_state.0", "present_state.0"),
        ("past_state.1", "present_state.1"),
    ]
    assert shapes["past_state.0"] == "past_state.0: float32[batch, 32, 3]"
    assert shapes["present_state.1"] == "present_state.1: float32[batch, 2, 16, 16]"


def test_pieces_and_rows_against_whole_texts(captured: Program, program: Program):
    text = tokens(1, 15)
    (whole,) = captured.run(text)
    decoder = Decoder(program, run_program(program), rows=1, capacity=20)
    pieces = [decoder.read(piece) for piece in text.split((5, 2, 1, 1, 4, 1, 1), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-5)
    together = Decoder(program, run_program(program), rows=2, capacity=20)
    for row, length in enumerate((3, 9)):
        together.read(text[:, :length], [row])
    logits = together.read(torch.stack([text[0, 3:4], text[0, 9:10]]))
    torch.testing.assert_close(logits[:, 0], whole[0, [3, 9]], rtol=0, atol=1e-5)


def test_onnx_runtime_reads_the_same(captured: Program, program: Program, tmp_path: Path):
    text = tokens(1, 15)
    (whole,) = captured.run(text)
    decoder = Decoder(program, run_onnx(program, tmp_path), rows=1, capacity=20)
    pieces = [decoder.read(piece) for piece in text.split((5, 6, 1, 1, 1, 1), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-5)
