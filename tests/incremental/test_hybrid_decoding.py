"""Every kind of mixer decodes what the grafted model computes over whole sequences, in torch and in ONNX Runtime."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
import zoo
from decoding_checks import Decoder, Run, passed, run_onnx, run_program
from torch import Tensor

from compiler.program import Program
from compiler.registry import Registry

TOLERANCE = 1e-4
"""Of the largest logit."""
WINDOW, TOKENS = "window=4:sinks=2", 40
GRAFTS = (
    f"sliding-window:{WINDOW}",
    "sliding-window:window=1:sinks=0",
    "sliding-window:window=32:sinks=3",
    *(
        f"linear-attention:kind={kind}:{window}"
        for kind in Registry(entry_points=False).mixers()
        for window in (WINDOW, "window=0")
    ),
    f"linear-attention:kind=gated-delta:{WINDOW}:layers=0",
)
FAST = (f"sliding-window:{WINDOW}", f"linear-attention:kind=gated-delta:{WINDOW}")
PIECES = {
    "one-chunk": (TOKENS,),
    "token-by-token": (1,) * TOKENS,
    "chunks-then-tokens": (16, 16, 1, 1, 1, 1, 1, 1, 1, 1),
    "mixed": (3, 1, 9, 1, 1, 5, 2, 18),
}


class Case(NamedTuple):
    grafted: Program
    incremental: Program


@functools.cache
def fused() -> Program:
    """The model that all grafts are put into, once a session."""
    return passed(zoo.canonical("llama"), "fuse")


@functools.cache
def case(graft: str) -> Case:
    """The grafted model over whole sequences and call by call, once a session."""
    grafted = passed(fused(), graft)
    return Case(grafted, passed(grafted, "make-incremental"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> functools._lru_cache_wrapper[tuple[Run, Run]]:
    """Both ways to run what a graft gives."""

    @functools.cache
    def both(graft: str) -> tuple[Run, Run]:
        program = case(graft).incremental
        return run_program(program), run_onnx(program, tmp_path_factory.mktemp("hybrid"))

    return both


def tokens(rows: int, count: int) -> Tensor:
    return torch.randint(4, 99, (rows, count), generator=torch.Generator().manual_seed(rows * 100 + count))


def whole(graft: str, text: Tensor) -> Tensor:
    """The logits of the grafted model for a text that is read at once."""
    return case(graft).grafted.run(text, torch.ones_like(text))[0]


def has_attention(graft: str) -> bool:
    """Whether some layer keeps attention over all tokens."""
    return any(state.past.startswith("past_key_values.") for state in case(graft).incremental.states)


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


@pytest.mark.parametrize("graft", [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in GRAFTS])
class TestGraft:
    @pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
    def test_a_text_in_pieces(self, graft: str, pieces: tuple[int, ...], runs):
        text = tokens(1, TOKENS)
        expected = whole(graft, text)
        for run in runs(graft):
            decoder = Decoder(case(graft).incremental, run, rows=1, capacity=TOKENS)
            assert_near(torch.cat([decoder.read(piece) for piece in text.split(pieces, dim=1)], dim=1), expected)

    def test_rows_of_different_lengths_go_on_together(self, graft: str, runs):
        # The kernel of the attention that is left reads one token of several rows behind their pasts, not more.
        lengths, steps = (5, 23, 2), (1, 1, 1, 1) if has_attention(graft) else (1, 1, 3, 1)
        texts = [tokens(1, length + sum(steps)) for length in lengths]
        expected = [whole(graft, text) for text in texts]
        for run in runs(graft):
            decoder = Decoder(case(graft).incremental, run, rows=3, capacity=TOKENS)
            for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
                assert_near(decoder.read(text[:, :length], [row]), expected[row][:, :length])
            start = 0
            for step in steps:
                parts = [
                    text[:, length + start : length + start + step] for text, length in zip(texts, lengths, strict=True)
                ]
                logits = decoder.read(torch.cat(parts))
                for row, length in enumerate(lengths):
                    assert_near(logits[row : row + 1], expected[row][:, length + start : length + start + step])
                start += step

    def test_states_keep_their_size(self, graft: str, runs):
        grafted = [state for state in case(graft).incremental.states if state.past.startswith("past_state.")]
        shapes = {spec.name: spec.shape for spec in case(graft).incremental.inputs}
        assert grafted
        for state in grafted:
            assert all(isinstance(size, int) for size in shapes[state.past][1:])
