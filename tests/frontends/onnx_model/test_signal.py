"""Fourier transforms at free lengths and stated ones, both ways; short-time transforms; windows; training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from single_node import assert_agrees, node_model, read

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.operator_table import find_operator

FLOAT = np.float32


def random(*shape: int) -> np.ndarray[Any, Any]:
    """Standard normal numbers."""
    return np.random.default_rng(12).standard_normal(shape).astype(FLOAT)


def pairs(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Complex numbers as their two parts."""
    return np.stack([numbers.real, numbers.imag], -1).astype(FLOAT)


@pytest.mark.parametrize(("parts", "onesided"), [(1, 0), (1, 1), (2, 0)])
def test_dft_at_free_lengths_against_numpy(parts: int, onesided: int, tmp_path: Path):
    model = node_model("DFT", {"x": (FLOAT, ["batch", "length", parts])}, 20, onesided=onesided)

    def expected(_: Any, sample: dict[str, Any]) -> list[Any]:
        x = sample["x"]
        whole = np.fft.fft(x[..., 0] if parts == 1 else x[..., 0] + 1j * x[..., 1], axis=1)
        return [pairs(whole[:, : x.shape[1] // 2 + 1] if onesided else whole)]

    assert_agrees(model, tmp_path, [{"x": random(2, 8, parts)}, {"x": random(1, 11, parts)}], expected)


@pytest.mark.parametrize("length", [5, 6, 12])
def test_dft_of_a_stated_length_is_cut_or_filled_up(length: int, tmp_path: Path):
    stored = np.array(length, np.int64)
    model = node_model("DFT", {"x": (FLOAT, ["batch", 8, 3, 1]), "n": stored}, 17, axis=1)
    assert_agrees(
        model, tmp_path, [{"x": random(2, 8, 3, 1)}],
        lambda _, sample: [pairs(np.fft.fft(sample["x"][..., 0], n=length, axis=1))],
    )  # fmt: skip


@pytest.mark.parametrize("length", [7, 8])
def test_one_sided_inverse_gives_real_numbers(length: int, tmp_path: Path):
    signal = random(2, length)
    model = node_model(
        "DFT", {"x": (FLOAT, ["batch", length // 2 + 1, 2]), "n": np.array(length, np.int64)}, 20, inverse=1, onesided=1
    )
    sample = {"x": pairs(np.fft.rfft(signal, axis=1))}
    assert_agrees(model, tmp_path, [sample], lambda *_: [signal[..., None]])


def test_stft_is_a_convolution_at_any_length(tmp_path: Path):
    stored = {"step": np.array(3, np.int64), "window": np.hanning(8).astype(FLOAT)}
    model = node_model("STFT", {"x": (FLOAT, ["batch", "length", 1]), **stored}, 17)
    program = assert_agrees(model, tmp_path, [{"x": random(2, 40, 1)}, {"x": random(1, 23, 1)}])
    assert any(str(node.target) == "aten.conv1d.default" for node in program.graph.nodes)


def test_stft_trains():
    stored = {"step": np.array(2, np.int64), "window": None, "frame": np.array(6, np.int64)}
    program = read(node_model("STFT", {"x": (FLOAT, [1, 20, 1]), **stored}, 17))
    x = torch.randn(1, 20, 1, requires_grad=True)
    program.graph_module(x)[0].pow(2).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0


def test_stft_without_the_length_of_a_frame_is_refused():
    stored = {"step": np.array(2, np.int64), "window": np.ones(4, FLOAT), "frame": np.array(6, np.int64)}
    with pytest.raises(CompilerError, match="the length of its frames is not that of its window"):
        read(node_model("STFT", {"x": (FLOAT, [1, 20, 1]), **stored}, 17))


@pytest.mark.parametrize(
    ("operator", "window"),
    [("HannWindow", torch.hann_window), ("HammingWindow", None), ("BlackmanWindow", torch.blackman_window)],
)
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(operator: str, window: Any, periodic: int):
    entry = find_operator("", operator, 17)
    assert entry is not None
    found = entry.function(Known.of(9), periodic=periodic)
    if window is None:
        expected = torch.hamming_window(9, bool(periodic), alpha=25 / 46, beta=21 / 46)
    else:
        expected = window(9, bool(periodic))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
