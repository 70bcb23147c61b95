"""Operators of com.microsoft other than attention: each node against ONNX Runtime's kernel for it, read and lowered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from node_comparison import Array, OneNode, assert_same_numbers

from compiler.errors import CompilerError
from compiler.sites import find_sites

RANDOM = np.random.default_rng(1)
BATCH, TOKENS, WIDTH = 2, 5, 8


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


X, SKIP, VECTOR, OTHER = normal(BATCH, TOKENS, WIDTH), normal(BATCH, TOKENS, WIDTH), normal(WIDTH), normal(WIDTH)
IMAGE, KERNEL = normal(1, 3, 6, 7), normal(4, 3, 3, 2)
Case = tuple[str, list[Array | None], dict[str, Any]]
CASES: dict[str, Case] = {
    "gelu": ("Gelu", [X], {}),
    "bias gelu": ("BiasGelu", [X, VECTOR], {}),
    "fast gelu": ("FastGelu", [X], {}),
    "fast gelu with a bias": ("FastGelu", [X, VECTOR], {}),
    "quick gelu": ("QuickGelu", [X], {}),
    "quick gelu that is silu": ("QuickGelu", [X], {"alpha": 1.0}),
    "matmul": ("FusedMatMul", [normal(2, 3, 4), normal(2, 4, 5)], {"alpha": 0.5}),
    "matmul, turned": ("FusedMatMul", [normal(2, 4, 3), normal(5, 4)], {"transA": 1, "transB": 1}),
    "matmul, batch turned": (
        "FusedMatMul", [normal(4, 2, 3), normal(2, 3, 5)], {"transBatchA": 1}
    ),
    "matmul, all turned": (
        "FusedMatMul", [normal(3, 2, 6, 4), normal(5, 2, 6, 3)],
        {"transA": 1, "transBatchA": 1, "transB": 1, "transBatchB": 1},
    ),
    "transposing matmul": ("TransposeMatMul", [normal(2, 3, 4), normal(2, 5, 4)], {"transB": 1, "alpha": 2.0}),
    "gemm, relu": ("FusedGemm", [normal(3, 4), normal(4, 5), normal(5)], {"activation": "Relu"}),
    "gemm, leaky": (
        "FusedGemm", [normal(4, 3), normal(5, 4)],
        {"transA": 1, "transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.3},
    ),
    "conv, relu": ("FusedConv", [IMAGE, KERNEL, normal(4)], {"activation": "Relu", "pads": [1, 0, 1, 1]}),
    "conv, sum": ("FusedConv", [IMAGE, KERNEL, None, normal(1, 4, 4, 6)], {"activation": "Relu"}),
    "conv, clip": ("FusedConv", [IMAGE, KERNEL], {"activation": "Clip", "activation_params": [-0.5, 0.5]}),
    "conv, hard sigmoid": (
        "FusedConv", [IMAGE, KERNEL], {"activation": "HardSigmoid", "activation_params": [0.1, 0.4], "strides": [2, 2]}
    ),
    "conv, leaky": ("FusedConv", [IMAGE, KERNEL], {"activation": "LeakyRelu", "activation_params": [0.2]}),
    "skip": ("SkipLayerNormalization", [X, SKIP, VECTOR, OTHER], {"epsilon": 1e-5}),
    "skip of one row": ("SkipLayerNormalization", [X, normal(TOKENS, WIDTH), VECTOR], {}),
    "skip rms": ("SkipSimplifiedLayerNormalization", [X, SKIP, VECTOR], {"epsilon": 1e-5}),
    "trilu": ("Trilu", [normal(2, 4, 5)], {"upper": 0}),
    "inverse": ("Inverse", [normal(2, 3, 3) + 3 * np.eye(3, dtype=np.float32)], {}),
    "grid sample": ("GridSample", [IMAGE, normal(1, 4, 5, 2)], {"align_corners": 1, "padding_mode": "border"}),
    "distance": ("CDist", [normal(3, 4), normal(5, 4)], {"metric": "euclidean"}),
    "distance, squared": ("CDist", [normal(3, 4), normal(5, 4)], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_output(case: str) -> None:
    op, inputs, options = CASES[case]
    assert_same_numbers(OneNode(op, inputs, options), rtol=1e-3)


def test_diagonals_axes_and_widths_are_stored_numbers() -> None:
    assert_same_numbers(OneNode("Trilu", [normal(4, 5), np.array(-1)], stored=(1,)))
    assert_same_numbers(OneNode("ExpandDims", [X, np.array(1, np.int32)], stored=(1,)))
    pads = np.array([0, 1, -1, 2, 0, 1])
    assert_same_numbers(OneNode("Pad", [X, pads, np.array(0.5, np.float32)], stored=(1, 2)))
    assert_same_numbers(OneNode("GatherND", [X, np.array([[0, 1], [1, 0]])]))
    assert_same_numbers(OneNode("Range", [np.array(2.0), np.array(5.0), np.array(0.5)], stored=(0, 1, 2)))


def test_unique_keeps_the_order() -> None:
    node = OneNode("Unique", [np.array([2, 1, 1, 3, 4, 3], np.float32)], outputs=3)
    program = node.program()
    for ours, theirs in zip(program.run(torch.from_numpy(node.inputs["x0"])), node.reference(), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_the_sum_before_a_norm_is_an_output_too(op: str) -> None:
    between = [OTHER] if op == "SkipLayerNormalization" else []
    given = [X, SKIP, VECTOR, *between, OTHER]
    program = assert_same_numbers(OneNode(op, given, {"epsilon": 1e-5}, outputs=4, omitted=(1, 2), stored=(2,)))
    assert find_sites(program, ["norm"])


@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_norm_under_its_first_name(axis: int) -> None:
    weight = normal(*X.shape[axis:])
    node = OneNode("SimplifiedLayerNormalization", [X, weight], {"axis": axis, "epsilon": 1e-5}, domain="", outputs=1)
    assert_same_numbers(node)


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_embeddings_and_their_norm(segments: bool, mask: bool) -> None:
    ids = RANDOM.integers(0, 9, (BATCH, TOKENS)).astype(np.int32)
    kinds = RANDOM.integers(0, 2, (BATCH, TOKENS)).astype(np.int32) if segments else None
    tables = [normal(9, WIDTH), normal(7, WIDTH), normal(2, WIDTH) if segments else None]
    seen = np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32) if mask else None
    stored = (2, 3, 4, 5, 6) if segments else (2, 3, 5, 6)
    node = OneNode(
        "EmbedLayerNormalization",
        [ids, kinds, *tables, VECTOR, OTHER, seen],
        {"epsilon": 1e-5},
        outputs=2,
        stored=stored,
    )
    assert_same_numbers(node)


STATES = {
    "linear": ("linear", 4, 2, False, False),
    "gated": ("gated", 4, 2, True, False),
    "gated by channel": ("gated", 2, 2, "channels", False),
    "delta": ("delta", 4, 4, False, True),
    "gated delta": ("gated_delta", 4, 2, True, True),
    "more states than queries": ("gated_delta", 2, 4, True, True),
}


@pytest.mark.parametrize("form", STATES)
def test_linear_attention(form: str) -> None:
    rule, queries, states, decays, updates = STATES[form]
    d_k, d_v = 4, 6
    decay = -np.abs(normal(BATCH, TOKENS, states * (d_k if decays == "channels" else 1))) if decays else None
    beta = 1 / (1 + np.exp(normal(BATCH, TOKENS, states))) if updates else None
    past = normal(BATCH, states, d_k, d_v)
    given = [normal(BATCH, TOKENS, heads * dim) for heads, dim in ((queries, d_k), (states, d_k), (states, d_v))]
    options = {"q_num_heads": queries, "kv_num_heads": states, "update_rule": rule}
    assert_same_numbers(OneNode("LinearAttention", [*given, past, decay, beta], options, outputs=2))


@pytest.mark.parametrize(("dilation", "channels_last"), [(1, 0), (2, 0), (1, 1), (2, 1)])
def test_causal_conv(dilation: int, channels_last: int) -> None:
    x, past = normal(BATCH, 6, TOKENS), normal(BATCH, 6, 3 * dilation)
    if channels_last:
        x, past = (np.ascontiguousarray(one.transpose(0, 2, 1)) for one in (x, past))
    options = {"activation": "silu"} | ({"dilation": 2} if dilation > 1 else {}) | {"channels_last": channels_last}
    given = [x, normal(6, 1, 4), normal(6), past]
    assert_same_numbers(OneNode("CausalConvWithState", given, options, outputs=2, stored=(1, 2)))


def test_gates_of_linear_attention() -> None:
    given = [normal(BATCH, TOKENS, 3), normal(3), -np.abs(normal(3)), normal(BATCH, TOKENS, 3)]
    assert_same_numbers(OneNode("LinearAttentionGate", given, outputs=2))
    for activation in ("silu", "sigmoid"):
        assert_same_numbers(OneNode("GatedRMSNorm", [X, normal(4), SKIP], {"activation": activation}))


@pytest.mark.parametrize("axis", [1, 3])
def test_softmax_of_a_sum(axis: int) -> None:
    """It has no CPU kernel: ONNX Runtime writes it for GPUs."""
    data, bias = normal(2, 3, 4, 5), normal(2, 1, 1, 5)
    program = OneNode("BiasSoftmax", [data, bias], {"axis": axis, "is_inner_broadcast": 1}).program()
    (found,) = program.run(torch.from_numpy(data), torch.from_numpy(bias))
    powers = np.exp((data + bias).astype(np.float64))
    expected = powers / powers.sum(tuple(range(axis, 4)), keepdims=True)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("channels_last", [0, 1])
@pytest.mark.parametrize("skip", [None, (2, 6), (2, 6, 4, 3)])
def test_norms_of_groups_of_channels(activation: int, channels_last: int, skip: tuple[int, ...] | None) -> None:
    """ONNX Runtime writes them for GPUs: compared with its kernel of ONNX's GroupNormalization."""
    x, gamma, beta, bias = normal(2, 6, 4, 3), normal(6), normal(6), normal(6)
    added = None if skip is None else normal(*skip)
    total = x if added is None else x + added.reshape(*skip, *[1] * (4 - len(skip))) + bias.reshape(6, 1, 1)
    settings = {"epsilon": 1e-5, "num_groups": 3}
    (expected,) = OneNode("GroupNormalization", [total, gamma, beta], settings, domain="").reference()
    expected = expected / (1 + np.exp(-expected)) if activation else expected

    def turned(one: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(one, 1, -1)) if channels_last and one.ndim == 4 else one

    options = {"activation": activation, "groups": 3, "channels_last": channels_last}
    if added is None:
        node = OneNode("GroupNorm", [turned(x), gamma, beta], options)
    else:
        node = OneNode("SkipGroupNorm", [turned(x), gamma, beta, turned(added), bias], options, outputs=2)
    program = node.program()
    found = program.run(*(torch.from_numpy(node.inputs[spec.name]) for spec in program.inputs))
    for ours, theirs in zip(found, (expected, total), strict=False):
        np.testing.assert_allclose(ours.numpy(), turned(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity", "swiglu"])
@pytest.mark.parametrize(("count", "normalized"), [(1, 0), (2, 1), (2, 0)])
def test_experts(activation: str, count: int, normalized: int) -> None:
    experts, inner = 4, 6
    fused = 2 if activation == "swiglu" else 1
    weights = [normal(experts, fused * inner, WIDTH), normal(experts, fused * inner), normal(experts, WIDTH, inner)]
    given = [X, normal(BATCH * TOKENS, experts), *weights, normal(experts, WIDTH)]
    options = {"activation_type": activation, "k": count, "normalize_routing_weights": normalized}
    if activation == "swiglu":
        options |= {"swiglu_fusion": 1, "activation_alpha": 1.7, "activation_beta": 1.0, "swiglu_limit": 2.0}
    assert_same_numbers(OneNode("MoE", given, options, stored=(2, 3, 4, 5)))


def test_training_reaches_the_weights_of_a_fused_model() -> None:
    node = OneNode("SkipLayerNormalization", [X, SKIP, VECTOR, OTHER], {"epsilon": 1e-5}, stored=(2, 3))
    program = node.program()
    (found,) = program.graph_module(*(torch.from_numpy(node.inputs[spec.name]) for spec in program.inputs))
    found.pow(3).sum().backward()
    gradients = [weight.grad for weight in program.graph_module.parameters()]
    assert len(gradients) == 2
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("op", "inputs", "options", "message"),
    [
        ("FusedGemm", [normal(3, 4), normal(4, 5)], {"activation": "Selu"}, "its activation is Selu"),
        ("CDist", [normal(3, 4), normal(5, 4)], {"metric": "cosine"}, "its metric is cosine"),
        ("CausalConvWithState", [normal(1, 2, 3), normal(2, 1, 2)], {"state_window": 2}, "the last 2 states"),
        ("CausalConvWithState", [normal(1, 2, 3, 3), normal(2, 1, 1, 2)], {"ndim": 2}, "2 spatial dims"),
        ("MoE", [X, normal(10, 2), *[normal(2, 8, 8), None] * 3], {}, "a third product"),
        ("BeamSearch", [normal(1)], {}, "not read: com.microsoft.BeamSearch"),
        ("ConvTransposeWithDynamicPads", [IMAGE, KERNEL], {}, "not read: com.microsoft.ConvTransposeWithDynamicPads"),
    ],
)
def test_what_is_not_read_is_refused(
    op: str, inputs: list[Array | None], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompilerError, match=message):
        OneNode(op, inputs, options).program()
