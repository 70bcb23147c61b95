"""Fourier transforms as real products with matrices of sines and cosines; window functions; mel filters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler.frontends.onnx_model.element_types import dtype_of
from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.windows import larger

Count = Any
"""A size: an int, or a SymInt, which torch's stubs leave out."""


@operator("DFT", since=17)
def dft_by_attribute(
    x: Tensor, dft_length: Known | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    return _transformed(x, dft_length, axis, bool(inverse), bool(onesided))


@operator("DFT", since=20)
def dft(
    x: Tensor, dft_length: Known | None = None, axis: Known | None = None, *, inverse: int = 0, onesided: int = 0
) -> Tensor:
    return _transformed(x, dft_length, -2 if axis is None else int(axis.item()), bool(inverse), bool(onesided))


def _transformed(x: Tensor, dft_length: Known | None, axis: int, inverse: bool, onesided: bool) -> Tensor:
    """x [..., n, ..., 1 or 2], real numbers or pairs of real and imaginary parts, transformed along one axis.

    In float64: a sum of n products rounds more often than the log n steps of a fast transform.
    """
    held, parts = x.shape[axis], x.shape[-1]
    real_result = inverse and onesided
    usual = 2 * (held - 1) if real_result else held
    length = usual if dft_length is None else dft_length.sizes()[0]
    rows = x.movedim(axis, -2).flatten(-2)  # [..., n * parts]
    if real_result:
        matrix = _real_inverse(held, length, int(parts))
    else:
        matrix = _fourier(held, length, length // 2 + 1 if onesided else length, int(parts), 1 if inverse else -1)
        matrix = matrix / length if inverse else matrix
    result = torch.matmul(rows.to(torch.float64), matrix).to(x.dtype)
    return torch.unflatten(result, -1, (-1, 1 if real_result else 2)).movedim(-2, axis)


def _angles(rows: Count, columns: Count, length: Count) -> Tensor:
    """2 pi row column / length as float64 [rows, columns], reduced to one turn while the numbers are whole."""
    turns = torch.arange(rows).unsqueeze(1) * torch.arange(columns) % length
    return torch.div(turns.to(torch.float64) * (2 * math.pi), length)


def _fourier(held: Count, length: Count, bins: Count, parts: int, sign: int) -> Tensor:
    """[held * parts, bins * 2]: products with it are the transform of `held` numbers, cut or filled up to `length`."""
    angles = _angles(held, bins, length)
    real, imaginary = torch.cos(angles), sign * torch.sin(angles)
    inside = torch.lt(torch.arange(held), length).to(torch.float64).view(-1, 1, 1, 1)
    columns = torch.stack([real, imaginary], -1).unsqueeze(1)  # [held, 1, bins, 2]
    if parts == 2:
        columns = torch.cat([columns, torch.stack([-imaginary, real], -1).unsqueeze(1)], 1)
    return (columns * inside).flatten(2).flatten(0, 1)


def _real_inverse(held: Count, length: Count, parts: int) -> Tensor:
    """[held * parts, length]: from the bins up to the middle, each of which but the first and last stands for two."""
    angles, bins = _angles(held, length, length), torch.arange(held)
    single = torch.eq(bins, 0) | torch.eq(bins * 2, length)
    counted = torch.div(torch.le(bins * 2, length).to(torch.float64), length)
    weight = torch.where(single, 1.0, 2.0).to(torch.float64) * counted
    columns = torch.stack([torch.cos(angles), -torch.sin(angles)][:parts], 1)  # [held, parts, length]
    return (columns * weight.view(-1, 1, 1)).flatten(0, 1)


@operator("STFT", since=17)
def stft(
    signal: Tensor, frame_step: Known, window: Tensor | None = None, frame_length: Known | None = None, *,
    onesided: int = 1, node: NodeContext,
) -> Tensor:  # fmt: skip
    """A convolution of signal [batch, length, 1 or 2] with the windowed waves -> [batch, frames, bins, 2]."""
    frame = frame_length.item() if frame_length is not None else window.shape[0] if window is not None else None
    if not isinstance(frame, int) or (window is not None and window.shape[0] != frame):
        raise node.refuse("the length of its frames is not that of its window", "State both, and the same.")
    parts = int(signal.shape[-1]) if signal.dim() == 3 else 1
    bins = frame // 2 + 1 if onesided else frame
    waves = torch.unflatten(_fourier(frame, frame, bins, parts, -1), 0, (frame, parts)).permute(2, 1, 0)
    waves = waves.to(signal.dtype)  # [bins * 2, parts, frame]
    kernel = waves if window is None else waves * window.to(signal.dtype)
    rows = signal.transpose(1, 2) if signal.dim() == 3 else signal.unsqueeze(1)
    result = torch.conv1d(rows, kernel, stride=int(frame_step.item()))  # [batch, bins * 2, frames]
    return torch.unflatten(result.transpose(1, 2), -1, (bins, 2))


@operator("HannWindow", since=17)
def hann_window(size: Known, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _cosine_window(size, output_datatype, periodic, [0.5, 0.5])


@operator("HammingWindow", since=17)
def hamming_window(size: Known, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _cosine_window(size, output_datatype, periodic, [25 / 46, 21 / 46])


@operator("BlackmanWindow", since=17)
def blackman_window(size: Known, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return _cosine_window(size, output_datatype, periodic, [0.42, 0.5, 0.08])


def _cosine_window(size: Known, output_datatype: int, periodic: int, factors: list[float]) -> Tensor:
    """a0 - a1 cos(t) + a2 cos(2 t) - ... with t over one turn."""
    count: Count = size.sizes()[0]
    steps = torch.arange(count, dtype=torch.float64)
    turn = steps * (2 * math.pi) / (count if periodic else larger(count - 1, 1))
    value = torch.zeros_like(steps)
    for order, factor in enumerate(factors):
        value = value + (-1) ** order * factor * torch.cos(order * turn)
    return value.to(dtype_of(output_datatype))


@operator("MelWeightMatrix", since=17)
def mel_weight_matrix(
    num_mel_bins: Known, dft_length: Known, sample_rate: Known, lower_edge_hertz: Known, upper_edge_hertz: Known, *,
    output_datatype: int = 1,
) -> Known:  # fmt: skip
    """[dft_length // 2 + 1, bands]: triangles between frequencies that lie evenly on the mel scale."""
    bands, length, rate = (int(one.item()) for one in (num_mel_bins, dft_length, sample_rate))
    low, high = (2595 * math.log10(1 + one.item() / 700) for one in (lower_edge_hertz, upper_edge_hertz))
    mels = low + np.arange(bands + 2) * (high - low) / (bands + 2)
    edges = np.floor((length + 1) * 700 * (10 ** (mels / 2595) - 1) / rate).astype(np.int64)
    bins: np.ndarray[Any, Any] = np.arange(length // 2 + 1)[:, None]
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        rising, falling = (bins - left) / (center - left), (right - bins) / (right - center)
    matrix = np.where((bins >= left) & (bins < center), rising, 0.0)
    matrix = np.where((bins >= center) & (bins < right), falling, matrix)
    matrix = np.where(bins == center, 1.0, matrix)
    return Known(
        matrix.astype(torch.empty(0, dtype=dtype_of(output_datatype)).numpy().dtype), dtype_of(output_datatype)
    )
