"""Norms over dynamic dims, older forms, batch norm that trains, the sites that they become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backend_cases import run_lowered
from graph_comparison import RuntimeGraph, TextGraph, assert_same_at
from node_comparison import OneNode, assert_same_numbers

from compiler.errors import CompilerError
from compiler.sites.norm import match_norm
from compiler.sites.site import Site

PLANES = [{"B": 2, "H": 5, "W": 6}, {"B": 1, "H": 7, "W": 3}]


def test_norms_over_dynamic_planes() -> None:
    graph = """(float[B, 4, H, W] x, float[4] s, float[4] b, float[2] t, float[2] c)
        => (float[B, 4, H, W] instance, float[B, 4, H, W] groups, float[B, 4, H, W] neighbours,
            float[B, 4, H, W] first, float[B, 4, H, W] second, float[B, 4, H, W] mvn) {
        instance = InstanceNormalization <epsilon = 0.01> (x, s, b)
        groups = GroupNormalization <num_groups = 2> (x, s, b)
        neighbours = LRN <size = 3, alpha = 0.1, beta = 0.5> (x)
        first = LpNormalization <axis = 1, p = 1> (x)
        second = LpNormalization (x)
        mvn = MeanVarianceNormalization <axes = [0, 3]> (x)
    }"""
    assert_same_at(RuntimeGraph(graph), PLANES, rtol=1e-4, atol=1e-5)


def test_even_number_of_neighbours_has_one_more_behind() -> None:
    graph = "(float[2, 5, N] x) => (float[2, 5, N] y) { y = LRN <size = 4, alpha = 0.5, bias = 2.0> (x) }"
    x = torch.randn(2, 5, 3)
    sums = [x[:, max(0, channel - 1) : channel + 3].square().sum(1) for channel in range(5)]
    expected = x / (2 + 0.5 / 4 * torch.stack(sums, 1)) ** 0.75
    torch.testing.assert_close(TextGraph(graph).program().run(x)[0], expected)


def test_group_norm_with_a_scale_for_every_group() -> None:
    graph = """(float[B, 6, N] x, float[2] s, float[2] b) => (float[B, 6, N] y) {
        y = GroupNormalization <num_groups = 2, epsilon = 0.1> (x, s, b)
    }"""
    assert_same_at(RuntimeGraph(graph, 18), [{"B": 2, "N": 5}, {"B": 3, "N": 1}], rtol=1e-4, atol=1e-5)


def test_layer_norm_over_dynamic_dims() -> None:
    graph = """(float[B, N, 4] x, float[4] s, float[4] b, float[N, 4] whole, float[1] one)
        => (float[B, N, 4] last, float[B, N, 4] y, float[B, 1, 1] mean, float[B, 1, 1] deviation, float[B, N, 4] z) {
        last = LayerNormalization (x, s, b)
        y, mean, deviation = LayerNormalization <axis = 1, epsilon = 0.1> (x, whole)
        z = LayerNormalization <axis = -2> (x, one)
    }"""
    program = assert_same_at(TextGraph(graph), [{"B": 2, "N": 5}, {"B": 3, "N": 2}], rtol=1e-4, atol=1e-5)
    layer_norms = [node for node in program.graph.nodes if str(node.target) == "aten.layer_norm.default"]
    assert len(layer_norms) == 3


def test_rms_norm_over_dynamic_dims() -> None:
    graph = """(float[B, N, 4] x, float[4] s, float[N, 4] whole, float[1] one)
        => (float[B, N, 4] last, float[B, N, 4] y, float[B, N, 4] z) {
        last = RMSNormalization (x, s)
        y = RMSNormalization <axis = 1, epsilon = 0.1> (x, whole)
        z = RMSNormalization <axis = -1> (x, one)
    }"""
    program = assert_same_at(TextGraph(graph, 23), [{"B": 2, "N": 5}, {"B": 3, "N": 2}], rtol=1e-4, atol=1e-5)
    assert "regraft.rms_norm.default" in {str(node.target) for node in program.graph.nodes}


NORMS = """(float[B, 2, N] x) => (float[B, 2, N] y)
    <float[2] scale = {1, 2}, float[2] bias = {3, 4}, float[2] mean = {0.5, 1}, float[2] var = {1, 2}> {
    batch = BatchNormalization <epsilon = 0.1> (x, scale, bias, mean, var)
    turned = Transpose <perm = [0, 2, 1]> (batch)
    layer = LayerNormalization (turned, scale, bias)
    root = RMSNormalization (layer, scale)
    y = Transpose <perm = [0, 2, 1]> (root)
}"""


def test_norms_with_stored_weights_are_sites_and_train() -> None:
    program = assert_same_at(TextGraph(NORMS, 23), [{"B": 2, "N": 5}, {"B": 3, "N": 1}], rtol=1e-4, atol=1e-5)
    sites = [one for one in map(match_norm, program.graph.nodes) if isinstance(one, Site)]
    assert [one.bindings["norm"] for one in sites] == ["batch_norm", "layer_norm", "rms_norm"]
    assert sites[0].bindings["variance"] == "var"
    program.graph_module(torch.randn(2, 2, 3))[0].square().sum().backward()
    weights = dict(program.graph_module.named_parameters())
    assert weights["scale"].grad is not None
    assert weights["bias"].grad is not None


@pytest.mark.parametrize("opset", [1, 6, 7, 9])
def test_batch_norm_of_early_versions(opset: int) -> None:
    mode = {1: "<is_test = 1, consumed_inputs = [0, 0, 0, 1, 1]>", 6: "<is_test = 1>"}.get(opset, "")
    graph = f"""(float[B, 2, N] x, float[2] s, float[2] b, float[2] m) => (float[B, 2, N] y) {{
        y = BatchNormalization {mode} (x, s, b, m, s)
    }}"""
    program = TextGraph(graph, opset).program()
    x, scale, shift, mean = torch.randn(3, 2, 4), torch.rand(2) + 0.5, torch.randn(2), torch.randn(2)
    expected = torch.nn.functional.batch_norm(x, mean, scale, scale, shift)
    for found in (program.run(x, scale, shift, mean), run_lowered(program, [x, scale, shift, mean])):
        torch.testing.assert_close(found[0], expected)


def test_batch_norm_of_every_place_by_itself() -> None:
    graph = """(float[B, 2, 3] x, float[2, 3] s, float[2, 3] b, float[2, 3] m) => (float[B, 2, 3] y) {
        y = BatchNormalization <spatial = 0> (x, s, b, m, s)
    }"""
    program = TextGraph(graph, 7).program()
    x, scale, shift, mean = torch.randn(3, 2, 3), torch.rand(2, 3) + 0.5, torch.randn(2, 3), torch.randn(2, 3)
    expected = (x - mean) / torch.sqrt(scale + 1e-5) * scale + shift
    torch.testing.assert_close(program.run(x, scale, shift, mean)[0], expected)


def test_batch_norm_that_trains() -> None:
    """Early versions say so by listing all five outputs; 14 says so by an attribute."""
    early = """(float[B, 2, N] x, float[2] s, float[2] b, float[2] m)
        => (float[B, 2, N] y, float[2] mean, float[2] var, float[2] batch_mean, float[2] batch_var) {
        y, mean, var, batch_mean, batch_var = BatchNormalization <momentum = 0.75> (x, s, b, m, s)
    }"""
    late = """(float[B, 2, N] x, float[2] s, float[2] b, float[2] m) => (float[B, 2, N] y, float[2] c, float[2] d) {
        y, c, d = BatchNormalization <momentum = 0.75, training_mode = 1> (x, s, b, m, s)
    }"""
    x, scale, shift, mean = torch.randn(3, 2, 4), torch.rand(2) + 0.5, torch.randn(2), torch.randn(2)
    batch_mean, batch_var = x.mean((0, 2)), x.var((0, 2), correction=0)
    expected = [
        torch.nn.functional.batch_norm(x, None, None, scale, shift, training=True),
        mean * 0.75 + batch_mean * 0.25,
        scale * 0.75 + batch_var * 0.25,
        batch_mean,
        batch_var,
    ]
    for graph, opset, count in ((early, 9, 5), (late, 15, 3)):
        program = TextGraph(graph, opset).program()
        for found in (program.run(x, scale, shift, mean), run_lowered(program, [x, scale, shift, mean])):
            assert len(found) == count
            for ours, theirs in zip(found, expected, strict=False):
                torch.testing.assert_close(ours, theirs)


def test_half_precision_keeps_statistics_in_single() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 3, 8)).astype(np.float16)
    vector = (random.random(3) + 0.5).astype(np.float32)
    attributes = {"epsilon": 0.01}
    node = OneNode("BatchNormalization", [x, vector, vector, vector, vector], attributes, domain="", opset=15)
    wide = OneNode("BatchNormalization", [x.astype(np.float32), *[vector] * 4], attributes, domain="", opset=15)
    program = node.program()
    (found,) = program.run(*(torch.from_numpy(node.inputs[spec.name]) for spec in program.inputs))
    assert found.dtype == torch.float16
    np.testing.assert_allclose(found.numpy(), wide.reference()[0], rtol=2e-3, atol=2e-3)
    scale = np.ones(8, np.float16)
    assert_same_numbers(OneNode("LayerNormalization", [x, scale, scale], domain="", outputs=3), rtol=2e-3, atol=2e-3)


def test_norm_of_zeros_is_zero() -> None:
    program = TextGraph("(float[B, 3] x) => (float[B, 3] y) { y = LpNormalization (x) }", 22).program()
    assert program.run(torch.zeros(2, 3))[0].tolist() == [[0.0] * 3] * 2


def test_order_that_onnx_does_not_define_is_refused() -> None:
    graph = "(float[2, 3] x) => (float[2, 3] y) { y = LpNormalization <p = 3> (x) }"
    with pytest.raises(CompilerError, match="p is 3"):
        TextGraph(graph).program()
