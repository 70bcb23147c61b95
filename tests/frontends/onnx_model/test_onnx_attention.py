"""ONNX's own attention operators: what sites see, free sizes, windows, training, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backend_cases import run_lowered
from node_comparison import Array, OneNode
from onnx.reference import ReferenceEvaluator

from compiler.errors import CompilerError
from compiler.program import Program
from compiler.sites import find_sites

RANDOM = np.random.default_rng(2)
FREE = {0: {0: "batch", 2: "tokens"}, 1: {0: "batch", 2: "keys"}, 2: {0: "batch", 2: "keys"}}


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def node_of(inputs: list[Array | None], options: dict[str, Any] | None = None, **more: Any) -> OneNode:
    return OneNode("Attention", inputs, options, domain="", **{"opset": 24} | more)


def heads(count: int, tokens: int, batch: int = 2, dim: int = 8) -> Array:
    return normal(batch, count, tokens, dim)


def assert_like_reference(program: Program, node: OneNode, *, lowered: bool = True) -> None:
    """Assert that `program` gives what ONNX's reference evaluator gives for `node`'s inputs."""
    expected = ReferenceEvaluator(node.proto).run(None, node.inputs)
    tensors = [torch.from_numpy(node.inputs[spec.name]) for spec in program.inputs]
    for found in [program.run(*tensors), *([run_lowered(program, tensors)] if lowered else [])]:
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-4, atol=1e-5)


QUERY, KEY, VALUE = heads(4, 3), heads(4, 5), heads(4, 5, dim=6)
PAST = [heads(4, 2), heads(4, 2, dim=6)]
SITES: dict[str, tuple[list[Array | None], dict[str, Any], str]] = {
    "plain": ([QUERY, KEY, VALUE], {}, "none"),
    "causal": ([QUERY, KEY, VALUE], {"is_causal": 1}, "causal"),
    "causal behind a past": ([QUERY, heads(4, 3), heads(4, 3, dim=6), None, *PAST], {"is_causal": 1}, "window"),
    "causal with a mask": ([QUERY, KEY, VALUE, RANDOM.random((3, 5)) > 0.3], {"is_causal": 1}, "causal+padding"),
    "mask": ([QUERY, KEY, VALUE, RANDOM.random((2, 1, 3, 5)) > 0.3], {}, "padding"),
    "bias": ([QUERY, KEY, VALUE, normal(3, 5)], {}, "padding+bias"),
    "shared heads": ([QUERY, heads(2, 5), heads(2, 5)], {"scale": 0.2}, "none"),
    "softcap": ([QUERY, KEY, VALUE], {"softcap": 2.0}, "none"),
}


@pytest.mark.parametrize("form", SITES)
def test_every_node_is_one_attention_site(form: str) -> None:
    inputs, options, mask = SITES[form]
    node = node_of(inputs, options)
    program = node.program()
    (site,) = find_sites(program, ["attention"])
    assert site.bindings["mask"] == mask
    assert site.bindings["kv_head_count"] == inputs[1].shape[1]
    assert_like_reference(program, node)


@pytest.mark.parametrize(("left", "right"), [(1, -1), (-1, 1), (2, 0), (0, 2)])
@pytest.mark.parametrize("causal", [0, 1])
def test_windows(left: int, right: int, causal: int) -> None:
    options = {"left_window_size": left, "right_window_size": right, "is_causal": causal}
    node = node_of([QUERY, KEY, VALUE], options, opset=25)
    program = node.program()
    assert_like_reference(program, node)
    (site,) = find_sites(program, ["attention"])
    assert site.bindings["mask"] == "window" or (causal and left < 0)


def test_a_window_behind_a_past() -> None:
    given = [QUERY, heads(4, 3), heads(4, 3, dim=6), None, *PAST]
    node = node_of(given, {"left_window_size": 2, "is_causal": 1}, opset=25, outputs=3)
    assert_like_reference(node.program(), node)


def test_batch_tokens_and_keys_stay_free() -> None:
    program = node_of([QUERY, KEY, VALUE], dims=FREE).program(dynamic=True)
    sizes = {str(size) for spec in program.inputs for size in spec.shape if not isinstance(size, int)}
    assert sizes == {"batch", "tokens", "keys"}
    assert_like_reference(program, node_of([heads(4, 6, 3), heads(4, 9, 3), heads(4, 9, 3, dim=6)]))


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_past_stays_free(tokens: int) -> None:
    given = [heads(4, tokens), heads(4, tokens), heads(4, tokens), None, heads(4, 2), heads(4, 2)]
    dims = {index: {0: "batch"} for index in (0, 1, 2, 4, 5)}
    dims[4][2] = dims[5][2] = "past"
    program = node_of(given, {"is_causal": 1}, outputs=3, dims=dims).program(dynamic=True)
    larger = [heads(4, tokens, 3), heads(4, tokens, 3), heads(4, tokens, 3), None, heads(4, 7, 3), heads(4, 7, 3)]
    assert_like_reference(program, node_of(larger, {"is_causal": 1}, outputs=3))
    (site,) = find_sites(program, ["attention"])
    assert site.bindings["mask"] == ("none" if tokens == 1 else "padding")


def test_sequences_of_different_lengths_stay_free() -> None:
    lengths = np.array([2, 5])
    dims = FREE | {6: {0: "batch"}}
    program = node_of([QUERY, KEY, VALUE, None, None, None, lengths], {"is_causal": 1}, dims=dims).program(dynamic=True)
    larger = [heads(4, 4, 3), heads(4, 7, 3), heads(4, 7, 3, dim=6), None, None, None, np.array([4, 7, 1])]
    assert_like_reference(program, node_of(larger, {"is_causal": 1}))


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"is_causal": 1}])
def test_gradients_reach_query_key_and_value(options: dict[str, Any]) -> None:
    program = node_of([QUERY, KEY, VALUE], options).program()
    leaves = [torch.from_numpy(one).double().requires_grad_() for one in (QUERY, KEY, VALUE)]
    (found,) = program.graph_module(*leaves)
    found.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([normal(2, 3, 8), normal(2, 5, 8), normal(2, 5, 8)], "need q_num_heads and kv_num_heads"),
        ([QUERY, KEY, VALUE, None, PAST[0]], "come together or not at all"),
        ([QUERY, heads(3, 5), heads(3, 5)], "4 query heads cannot share 3 key heads"),
    ],
)
def test_what_does_not_fit_is_refused(inputs: list[Array | None], message: str) -> None:
    with pytest.raises(CompilerError, match=message):
        node_of(inputs).program()


def test_rotary_embedding_stays_free() -> None:
    angles = normal(12, 4)
    dims = {0: {0: "batch", 2: "tokens"}, 3: {0: "batch", 1: "tokens"}}

    def node(batch: int, tokens: int) -> OneNode:
        positions = RANDOM.integers(0, 12, (batch, tokens))
        given = [heads(4, tokens, batch), np.cos(angles), np.sin(angles), positions]
        return OneNode("RotaryEmbedding", given, domain="", opset=23, stored=(1, 2), dims=dims)

    assert_like_reference(node(2, 3).program(dynamic=True), node(3, 7))


def test_states_of_linear_layers_stay_free() -> None:
    dims = {index: {0: "batch", 1: "tokens"} for index in (0, 1, 2, 4, 5)} | {3: {0: "batch"}}

    def node(batch: int, tokens: int) -> OneNode:
        inputs = [normal(batch, tokens, width) for width in (12, 6, 8)]
        inputs += [normal(batch, 2, 3, 4), -np.abs(normal(batch, tokens, 2)), np.abs(normal(batch, tokens, 2))]
        options = {"q_num_heads": 4, "kv_num_heads": 2}
        return OneNode("LinearAttention", inputs, options, domain="", opset=27, outputs=2, dims=dims)

    program = node(2, 3).program(dynamic=True)
    assert_like_reference(program, node(3, 70))
    assert "regraft.linear_attention.default" in [str(one.target) for one in program.graph.nodes]


def test_states_of_convolutions_stay_free() -> None:
    dims = {0: {0: "batch", 2: "tokens"}, 3: {0: "batch"}}
    weight = normal(4, 1, 3)

    def node(batch: int, tokens: int) -> OneNode:
        inputs = [normal(batch, 4, tokens), weight, None, normal(batch, 4, 2)]
        settings: dict[str, Any] = {"domain": "", "opset": 27, "outputs": 2, "stored": (1,), "dims": dims}
        return OneNode("CausalConvWithState", inputs, {"activation": "silu"}, **settings)

    assert_like_reference(node(2, 3).program(dynamic=True), node(3, 7))
