"""Pools at several sizes of their planes: padding, rounding up, dilation, indices, small dtypes; and older forms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from backend_cases import run_lowered
from graph_comparison import RuntimeGraph, TextGraph, assert_same_at
from node_comparison import OneNode, assert_same_numbers

from compiler.errors import CompilerError

PLANES = [{"B": 2, "H": 9, "W": 12}, {"B": 1, "H": 16, "W": 7}, {"B": 3, "H": 6, "W": 10}]

WINDOWS = {
    "plain": "kernel_shape = [2, 3]",
    "padded": "kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]",
    "another padding at every edge": "kernel_shape = [3, 3], pads = [0, 1, 2, 1], strides = [2, 1]",
    "padded by more than half a window": "kernel_shape = [3, 4], pads = [2, 3, 2, 3], strides = [3, 2]",
    "rounded up": "kernel_shape = [3, 2], strides = [2, 3], ceil_mode = 1",
    "rounded up and padded": "kernel_shape = [3, 3], strides = [2, 4], pads = [1, 1, 1, 1], ceil_mode = 1",
    "same, more at the end": 'kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_UPPER"',
    "same, more at the start": 'kernel_shape = [4, 2], strides = [3, 1], auto_pad = "SAME_LOWER"',
    "valid": 'kernel_shape = [2, 2], strides = [2, 2], auto_pad = "VALID"',
    "dilated": "kernel_shape = [2, 3], dilations = [3, 2], strides = [1, 2]",
    "dilated and padded": "kernel_shape = [2, 3], dilations = [3, 2], strides = [2, 2], pads = [1, 1, 0, 1]",
}


def pools(op: str, windows: Sequence[str], attributes: str = "", *, indices: bool = False) -> RuntimeGraph:
    """A graph with one pool for each of `windows`; they run together, since each export takes its time."""
    outputs, nodes = [], []
    for index, window in enumerate(windows):
        results = [f"y{index}", f"i{index}"] if indices else [f"y{index}"]
        shape = f"[B, 2, h{index}, w{index}]"
        outputs += [f"{dtype}{shape} {name}" for dtype, name in zip(("float", "int64"), results, strict=False)]
        nodes.append(f"{', '.join(results)} = {op} <{WINDOWS[window]}{attributes}> (x)")
    return RuntimeGraph(f"(float[B, 2, H, W] x) => ({', '.join(outputs)}) {{ {' '.join(nodes)} }}")


def test_largest_number_of_windows() -> None:
    assert_same_at(pools("MaxPool", list(WINDOWS)), PLANES)


@pytest.mark.parametrize("op", ["AveragePool", "LpPool"])
def test_mean_and_norm_of_windows(op: str) -> None:
    chosen = ["another padding at every edge", "rounded up and padded", "same, more at the end", "dilated and padded"]
    assert_same_at(pools(op, chosen), PLANES, rtol=1e-4, atol=1e-5)


def test_average_that_counts_the_padding() -> None:
    chosen = ["padded", "rounded up", "dilated and padded"]
    assert_same_at(pools("AveragePool", chosen, ", count_include_pad = 1"), PLANES, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("storage_order", [0, 1])
def test_indices_of_the_largest_numbers(storage_order: int) -> None:
    chosen = ["padded", "same, more at the start"] if storage_order else ["rounded up and padded", "dilated"]
    assert_same_at(pools("MaxPool", chosen, f", storage_order = {storage_order}", indices=True), PLANES)


def test_indices_in_lines_and_volumes() -> None:
    graph = """(float[B, 2, N] x, float[B, 2, 4, N, 5] z)
        => (float[B, 2, n] y, int64[B, 2, n] i, float[B, 2, a, b, c] v, int64[B, 2, a, b, c] j) {
        y, i = MaxPool <kernel_shape = [3], strides = [2], pads = [0, 2]> (x)
        v, j = MaxPool <kernel_shape = [2, 2, 2], strides = [2, 1, 2], storage_order = 1> (z)
    }"""
    assert_same_at(RuntimeGraph(graph), [{"B": 2, "N": 7}, {"B": 1, "N": 10}])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("shape", [(1, 2, 9), (1, 2, 6, 7)])
def test_small_integers(dtype: type, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(-128, 127, shape).astype(dtype)
    window = {"kernel_shape": [3] * (len(shape) - 2), "strides": [2] * (len(shape) - 2)}
    assert_same_numbers(OneNode("MaxPool", [x], window, domain="", outputs=2))


def test_half_precision() -> None:
    graph = """(float16[B, 2, H, W] x) => (float16[B, 2, h, w] y, float16[B, 2, a, b] z) {
        y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
        z = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (x)
    }"""
    assert_same_at(TextGraph(graph, 22), PLANES[:2], rtol=2e-3, atol=2e-3)


def test_pools_of_whole_planes() -> None:
    graph = """(float[B, 2, H, W] x, float[B, 3, W] z, float[B, 1, H, 2, W] u)
        => (float[a] mean, float[b] largest, float[c] norm, float[d] line, float[e] volume) {
        mean = GlobalAveragePool (x)
        largest = GlobalMaxPool (x)
        norm = GlobalLpPool <p = 3> (x)
        line = GlobalAveragePool (z)
        volume = GlobalAveragePool (u)
    }"""
    assert_same_at(RuntimeGraph(graph), PLANES)


def test_unpooling_puts_numbers_back() -> None:
    graph = """(float[B, 2, H, W] x) => (float[B, 2, h, w] y) {
        pooled, places = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
        y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (pooled, places)
    }"""
    assert_same_at(RuntimeGraph(graph), [{"B": 2, "H": 8, "W": 6}, {"B": 1, "H": 4, "W": 10}])


def test_largest_number_of_regions() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 3, 12, 16)).astype(np.float32)
    rois = np.array([[0, 0, 0, 15, 11], [1, 3, 2, 9, 8], [1, 5, 5, 5, 5], [0, 2, 6, 40, 50]], np.float32)
    for scale in (1.0, 0.5):
        attributes = {"pooled_shape": [2, 3], "spatial_scale": scale}
        assert_same_numbers(OneNode("MaxRoiPool", [x, rois], attributes, domain=""))


def test_norm_pool_of_version_one() -> None:
    graph = """(float[B, 2, H, W] x) => (float[B, 2, a, b] y, float[B, 2, c, d] z) {
        y = LpPool <kernel_shape = [2, 2], p = 3.0> (x)
        z = GlobalLpPool <p = 1.0> (x)
    }"""
    program = TextGraph(graph, 1).program()
    x = torch.randn(2, 2, 4, 5)
    for pooled, whole in (program.run(x), run_lowered(program, [x])):
        torch.testing.assert_close(pooled, torch.nn.functional.lp_pool2d(x.abs(), 3, 2, 1))
        torch.testing.assert_close(whole, x.abs().sum((2, 3), keepdim=True))


def test_pool_trains_through_dynamic_padding() -> None:
    graph = """(float[B, 1, H, 4] x) => (float[B, 1, h, w] y) <float[1, 1, 1, 4] scale = {1, 2, 3, 4}> {
        scaled = Mul (x, scale)
        largest = MaxPool <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (scaled)
        y = AveragePool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER", dilations = [1, 2]> (largest)
    }"""
    module = TextGraph(graph, 19).program().graph_module
    module(torch.rand(2, 1, 5, 4))[0].sum().backward()
    (scale,) = module.parameters()
    assert scale.grad is not None
    assert bool(scale.grad.abs().sum() > 0)


def test_planes_of_four_dims_are_refused() -> None:
    graph = "(float[1, 1, 4, 4, 4, 4] x) => (float[a] y) { y = MaxPool <kernel_shape = [2, 2, 2, 2]> (x) }"
    with pytest.raises(CompilerError, match="4 spatial dims, and kernels for 1, 2 and 3"):
        TextGraph(graph).program()
