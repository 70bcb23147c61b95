"""Routed attention decodes what it gives over whole sequences, in torch and in ONNX Runtime, row by row."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from decoding_checks import Decoder, Run, passed, run_onnx, run_program
from given_routers import GivenRouters
from rewrite_checks import context_of
from torch import Tensor

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.grafting import apply_graft
from compiler.program import Program
from compiler.states import BATCH, CAPACITY, KEPT_POSITIONS, MASK, TOKENS
from compiler.target import Target

TOLERANCE = 1e-4
"""Of the largest logit."""
FIRST, LENGTH = 9, 40
PIECES = {
    "one-chunk": (LENGTH,),
    "token-by-token": (1,) * LENGTH,
    "chunks-then-tokens": (16, 16, 1, 1, 1, 1, 1, 1, 1, 1),
    "mixed": (3, 1, 9, 1, 1, 5, 2, 18),
    "as-routers-read": (FIRST, 1, 1, 29),
}
ROUTERS = {"all": 1e3, "near": -1e3, "own": 0.0}
"""What is added to the scores of routers with random weights."""


@functools.cache
def routed(routers: str) -> Program:
    fused = passed(zoo.canonical("llama"), "fuse")
    graft = GivenRouters(window=4, sinks=2, context=FIRST, offset=ROUTERS[routers])
    return apply_graft(graft, fused, (), context_of(fused))[0]


@functools.cache
def incremental(routers: str) -> Program:
    return passed(routed(routers), "make-incremental")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> functools._lru_cache_wrapper[tuple[Run, Run]]:
    """Both ways to run it call by call."""

    @functools.cache
    def both(routers: str) -> tuple[Run, Run]:
        program = incremental(routers)
        return run_program(program), run_onnx(program, tmp_path_factory.mktemp("routed"))

    return both


def text(row: int, count: int = LENGTH) -> Tensor:
    return torch.randint(4, 99, (1, count), generator=torch.Generator().manual_seed(row))


def whole(routers: str, tokens: Tensor) -> Tensor:
    return routed(routers).run(tokens, torch.ones_like(tokens))[0]


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def scores(tokens: Tensor) -> list[bool]:
    """By layer, whether a text gets all tokens."""
    found: list[bool] = []

    class Reader(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if str(n.target) == "regraft.context_score.default":
                found.append(bool(value[0] > 0))
            return value

    Reader(routed("own").graph_module).run(tokens, torch.ones_like(tokens))
    return found


def test_texts_are_routed_unlike_each_other() -> None:
    kinds = {tuple(scores(text(row))) for row in range(4)}
    assert len(kinds) > 1
    assert any(True in kind for kind in kinds)
    assert any(False in kind for kind in kinds)
    assert not torch.allclose(whole("all", text(0)), whole("near", text(0)), atol=1e-2)


@pytest.mark.parametrize("routers", ROUTERS)
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_a_text_in_pieces(routers: str, pieces: tuple[int, ...], runs: Any) -> None:
    for row in range(2):
        expected = whole(routers, text(row))
        for run in runs(routers):
            decoder = Decoder(incremental(routers), run, rows=1, capacity=LENGTH)
            assert_near(torch.cat([decoder.read(piece) for piece in text(row).split(pieces, 1)], 1), expected)


def test_rows_that_differ_go_on_together_as_if_each_were_alone(runs: Any) -> None:
    lengths, steps = (5, 23, 12, 9), 6
    texts = [text(row, length + steps) for row, length in enumerate(lengths)]
    expected = [whole("own", one) for one in texts]
    for run in runs("own"):
        decoder = Decoder(incremental("own"), run, rows=len(lengths), capacity=LENGTH)
        for row, (one, length) in enumerate(zip(texts, lengths, strict=True)):
            assert_near(decoder.read(one[:, :length], [row]), expected[row][:, :length])
        for step in range(steps):
            parts = [one[:, length + step : length + step + 1] for one, length in zip(texts, lengths, strict=True)]
            logits = decoder.read(torch.cat(parts))
            for row, length in enumerate(lengths):
                assert_near(logits[row : row + 1], expected[row][:, length + step : length + step + 1])


@pytest.mark.parametrize("routers", ROUTERS)
def test_whole_sequences_in_onnx(routers: str, tmp_path: Path) -> None:
    run = run_onnx(routed(routers), tmp_path)
    for count in (1, FIRST, FIRST + 1, LENGTH):
        tokens = torch.cat([text(row)[:, :count] for row in range(4)])
        names = [spec.name for spec in routed(routers).inputs]
        given = dict(zip(names, (tokens, torch.ones_like(tokens)), strict=True))
        assert_near(next(iter(run(given).values())), whole(routers, tokens))


class Bound:
    """A file whose pasts and presents share memory, as the runtime binds them; what its calls ran, by kernel."""

    def __init__(self, program: Program, folder: Path) -> None:
        import onnxruntime

        OnnxRuntime().lower(program, Target.parse("cpu"), folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        pasts = {state.past: state.present for state in program.states}
        sizes = {BATCH: 1, CAPACITY: LENGTH}
        self.values = {
            spec.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros([one if isinstance(one, int) else sizes[one.name] for one in spec.shape], spec.dtype)
            )
            for spec in program.inputs
            if spec.name in pasts
        }
        self.pasts, self.length = pasts, 0

    def read(self, tokens: Tensor) -> Tensor:
        self.length += tokens.shape[1]
        binding = self.session.io_binding()
        given = {
            TOKENS: tokens.numpy(),
            MASK: np.ones((1, self.length), np.int64),
            KEPT_POSITIONS: np.arange(tokens.shape[1]),
        }
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits")
        for past, present in self.pasts.items():
            binding.bind_ortvalue_input(past, self.values[past])
            binding.bind_ortvalue_output(present, self.values[past])
        self.session.run_with_iobinding(binding)
        return torch.from_numpy(binding.get_outputs()[0].numpy())

    def kernels(self) -> Counter[str]:
        events = json.loads(Path(self.session.end_profiling()).read_text(encoding="utf-8"))
        return Counter(event["args"]["op_name"] for event in events if "op_name" in event.get("args", {}))


@pytest.mark.parametrize("routers", ["all", "near"])
def test_in_shared_memory_what_is_not_asked_for_is_not_run(routers: str, tmp_path: Path) -> None:
    """One call of tokens that see all before them; then windows run no attention over the buffers."""
    bound = Bound(incremental(routers), tmp_path)
    pieces = (FIRST, 20, 1, 1, 1, 8)
    assert_near(torch.cat([bound.read(piece) for piece in text(1).split(pieces, 1)], 1), whole(routers, text(1)))
    layers = sum(state.past.endswith(".key") for state in incremental(routers).states)
    ran = bound.kernels()
    assert ran["GroupQueryAttention"] == (layers * len(pieces) if routers == "all" else layers)
    assert (ran["GatherND"] == 0) == (routers == "all")


def test_states_of_routers_keep_their_size() -> None:
    shapes = {spec.name: spec.shape for spec in incremental("own").inputs}
    names = [state.past for state in incremental("own").states]
    layers = sum(name.endswith(".key") for name in names)
    kept = [name for name in names if name.startswith("past_state.")]
    assert len(kept) == layers
    assert all(isinstance(size, int) for name in kept for size in shapes[name][1:])


def test_quantized_after_it() -> None:
    few_bits = passed(incremental("own"), "quantize:bits=4")
    assert few_bits.text() != incremental("own").text()
    run = run_program(few_bits)
    at_once = Decoder(few_bits, run, 1, LENGTH).read(text(1))
    decoder = Decoder(few_bits, run, 1, LENGTH)
    assert_near(torch.cat([decoder.read(piece) for piece in text(1).split(PIECES["mixed"], 1)], 1), at_once)
