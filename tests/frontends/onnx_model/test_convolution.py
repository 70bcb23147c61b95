"""Convolutions: padding that follows from dynamic sizes, transposed and deformable ones, sites, training, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from graph_comparison import RuntimeGraph, TextGraph, assert_same_at
from torch import nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.errors import CompilerError
from compiler.frontends.onnx_model.windows import same_padding
from compiler.sites.convolution import match_convolution
from compiler.sites.linear import match_linear
from compiler.sites.site import Site
from compiler.target import Target

PLANES = [{"B": 2, "H": 9, "W": 12}, {"B": 1, "H": 16, "W": 7}, {"B": 3, "H": 6, "W": 6}]

CONVOLUTIONS = {
    "explicit": "pads = [1, 1, 1, 1], strides = [2, 1]",
    "another padding at every edge": "pads = [0, 1, 2, 3], strides = [2, 2]",
    "same, more at the end": 'auto_pad = "SAME_UPPER", strides = [2, 3]',
    "same, more at the start": 'auto_pad = "SAME_LOWER", strides = [2, 2]',
    "same size": 'auto_pad = "SAME_UPPER", dilations = [1, 1]',
    "same, steps longer than the window": 'auto_pad = "SAME_UPPER", strides = [4, 5]',
    "valid": 'auto_pad = "VALID", strides = [2, 1]',
    "dilated": "dilations = [2, 1], pads = [2, 1, 2, 1]",
}


def convolutions(op: str, forms: Mapping[str, str], weight: str) -> RuntimeGraph:
    """A graph with one node for each of `forms`; they run together, since each export takes its time."""
    outputs = ", ".join(f"float[B, 6, h{index}, w{index}] y{index}" for index in range(len(forms)))
    nodes = " ".join(f"y{index} = {op} <group = 2, {form}> (x, w, b)" for index, form in enumerate(forms.values()))
    return RuntimeGraph(f"(float[B, 4, H, W] x, float{weight} w, float[6] b) => ({outputs}) {{ {nodes} }}")


def test_convolution_of_planes() -> None:
    assert_same_at(convolutions("Conv", CONVOLUTIONS, "[6, 2, 3, 3]"), PLANES, rtol=1e-4, atol=1e-5)


def test_convolutions_of_lines_and_volumes() -> None:
    lines = """(float[B, 3, N] x, float[4, 3, 2] w) => (float[B, 4, n] y) {
        y = Conv <auto_pad = "SAME_LOWER", strides = [3]> (x, w)
    }"""
    assert_same_at(RuntimeGraph(lines), [{"B": 2, "N": 9}, {"B": 1, "N": 14}], rtol=1e-4, atol=1e-5)
    volumes = """(float[B, 2, D, 5, W] x, float[3, 2, 2, 3, 1] w) => (float[B, 3, d, e, f] y) {
        y = Conv <pads = [0, 1, 0, 1, 1, 0], strides = [1, 2, 2]> (x, w)
    }"""
    assert_same_at(RuntimeGraph(volumes), [{"B": 2, "D": 4, "W": 6}, {"B": 1, "D": 7, "W": 5}], rtol=1e-4, atol=1e-5)


PADDED_AT_ONE_END = """(float[B, 2, H, W] x, float[2, 2, 3, 3] w)
    => (float[B, 2, a, b] y, float[B, 2, c, d] z, float[B, 2, e, f] v) {
    y = Conv <pads = [0, 0, 1, 4]> (x, w)
    z = MaxPool <kernel_shape = [3, 3], pads = [0, 2, 1, 0], strides = [2, 2]> (x)
    v = AveragePool <kernel_shape = [3, 3], pads = [0, 2, 1, 0], count_include_pad = 1> (x)
}"""


def test_padding_at_one_end_is_written_back_into_the_node(tmp_path: Path) -> None:
    program = assert_same_at(RuntimeGraph(PADDED_AT_ONE_END), PLANES[:2], rtol=1e-4, atol=1e-5)
    lowered = OnnxRuntime().lower(program, Target("cpu"), tmp_path)
    written = onnx.load(tmp_path / lowered.entry).graph.node
    assert sorted(node.op_type for node in written) == ["AveragePool", "Conv", "MaxPool"]


@pytest.mark.parametrize("span", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_same_padding_gives_one_window_a_step(span: int, stride: int) -> None:
    for size in range(span, 20):
        total = same_padding(size, span, stride)
        assert isinstance(total, int)
        assert total >= 0
        assert (size + total - span) // stride + 1 == -(-size // stride)


TRANSPOSED = {
    "plain": "strides = [2, 3]",
    "more output": "strides = [2, 3], output_padding = [1, 2], pads = [1, 1, 1, 1]",
    "another cut at every edge": "strides = [2, 2], pads = [0, 1, 2, 1]",
    "cut and more output": "strides = [3, 3], pads = [2, 0, 0, 1], output_padding = [1, 2]",
    "same, cut at the end": 'strides = [2, 2], auto_pad = "SAME_UPPER"',
    "same, cut at the start": 'strides = [2, 2], auto_pad = "SAME_LOWER"',
    "dilated": "dilations = [2, 1], pads = [1, 0, 1, 0]",
}


def test_transposed_convolution_of_planes() -> None:
    assert_same_at(convolutions("ConvTranspose", TRANSPOSED, "[4, 3, 3, 3]"), PLANES, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", ["[10, 8]", "[9, 8]", "[10, 7]"])
def test_transposed_convolution_to_given_sizes(sizes: str) -> None:
    graph = f"""(float[B, 1, 4, 3] x, float[1, 2, 3, 3] w, float[2] b) => (float[B, 2, h, v] y) {{
        y = ConvTranspose <strides = [3, 2], output_padding = [1, 1], output_shape = {sizes}> (x, w, b)
    }}"""
    assert_same_at(RuntimeGraph(graph), [{"B": 2}, {"B": 1}], rtol=1e-4, atol=1e-5)


def test_transposed_convolutions_of_lines_and_volumes() -> None:
    graph = """(float[B, 3, N] x, float[3, 4, 2] w, float[B, 2, 3, N, 2] v, float[2, 2, 2, 2, 1] u)
        => (float[B, 4, n] y, float[B, 2, d, e, f] z) {
        y = ConvTranspose <strides = [3], pads = [1, 0]> (x, w)
        z = ConvTranspose <strides = [2, 1, 1]> (v, u)
    }"""
    assert_same_at(RuntimeGraph(graph), [{"B": 2, "N": 5}, {"B": 1, "N": 3}], rtol=1e-4, atol=1e-5)


def test_deformable_convolution_of_any_batch() -> None:
    graph = """(float[B, 4, 5, 6] x, float[2, 2, 2, 2] w, float[B, 16, 4, 5] offset, float[2] b, float[B, 8, 4, 5] mask)
        => (float[B, 2, 4, 5] y) {
        y = DeformConv <group = 2, offset_group = 2> (x, w, offset, b, mask)
    }"""
    assert_same_at(TextGraph(graph), [{"B": 2}, {"B": 1}], rtol=1e-4, atol=1e-5)


LAYERS = """(float[B, 3, H, W] x) => (float[B, 2] y)
    <float[2, 3, 1, 1] kernel = {1, 2, 3, 4, 5, 6}, float[2] shift = {1, 2}, float[2, 2] turned = {1, 2, 3, 4},
     float[2, 2] straight = {1, 2, 3, 4}, float[2] bias = {5, 6}> {
    planes = Conv (x, kernel, shift)
    pooled = GlobalAveragePool (planes)
    flat = Flatten (pooled)
    first = Gemm <transB = 1> (flat, turned, bias)
    second = Gemm (first, straight, bias)
    y = Gemm <alpha = 2.0> (second, straight)
}"""


def test_layers_with_stored_weights_are_sites_and_train() -> None:
    program = assert_same_at(RuntimeGraph(LAYERS), PLANES[:2], rtol=1e-4, atol=1e-4)
    nodes = list(program.graph.nodes)
    convolutions = [one for one in map(match_convolution, nodes) if isinstance(one, Site)]
    assert [(one.bindings["weight"], one.bindings["bias"]) for one in convolutions] == [("kernel", "shift")]
    assert [one.bindings["weight"] for one in map(match_linear, nodes) if isinstance(one, Site)] == ["turned"]
    parameters = dict(program.graph_module.named_parameters())
    assert set(parameters) == {"kernel", "shift", "turned", "straight", "bias"}
    program.graph_module(torch.randn(2, 3, 4, 4))[0].sum().backward()
    assert all(isinstance(one, nn.Parameter) and one.grad is not None for one in parameters.values())


def test_layer_with_one_output_keeps_its_single_bias_as_a_weight() -> None:
    graph = """(float[B, 2, N] x) => (float[B, 1, N] y) <float[1, 2, 1] kernel = {1, 2}, float[1] shift = {3}> {
        y = Conv (x, kernel, shift)
    }"""
    (site,) = [one for one in map(match_convolution, TextGraph(graph).program().graph.nodes) if isinstance(one, Site)]
    assert site.bindings["bias"] == "shift"


def test_window_that_does_not_fit_its_input_is_refused() -> None:
    graph = "(float[2, 3, 5] x, float[4, 3, 2] w) => (float[a, b, c] y) { y = Conv <strides = [1, 1]> (x, w) }"
    with pytest.raises(CompilerError, match="strides has 2 numbers for 1 spatial dims"):
        TextGraph(graph).program()
    graph = '(float[2, 3, 5] x, float[4, 3, 2] w) => (float[a, b, c] y) { y = Conv <auto_pad = "SAME"> (x, w) }'
    with pytest.raises(CompilerError, match="auto_pad is 'SAME', not one of"):
        TextGraph(graph).program()
    graph = "(float[2, 3] x, float[4, 3, 2] w) => (float[a, b] y) { y = Gemm (x, w) }"
    with pytest.raises(CompilerError, match="multiplies two matrices"):
        TextGraph(graph).program()


@pytest.mark.parametrize("call", ["Conv (x, w)", "ConvTranspose (x, w)", "GlobalAveragePool (x)"])
def test_float64_is_read_and_its_lowering_refused(call: str, tmp_path: Path) -> None:
    graph = f"(double[B, 2, 5] x, double[2, 2, 3] w) => (double[B, 2, n] y) {{ y = {call} }}"
    program = TextGraph(graph, 22).program()
    with pytest.raises(CompilerError, match=r"no kernel for .* in float64"):
        OnnxRuntime().lower(program, Target("cpu"), tmp_path)
