"""Attention of com.microsoft: each node against ONNX Runtime's kernel for it, read and lowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from backend_cases import run_lowered
from node_comparison import Array, OneNode, assert_same_numbers

from compiler.errors import CompilerError
from compiler.sites import find_sites

BATCH, TOKENS, KEYS, PAST, HEADS, HEAD_DIM = 2, 5, 7, 3, 2, 8
WIDTH = HEADS * HEAD_DIM
KV_HEADS, GROUPED_DIM = 2, 16
GROUPED = {"num_heads": 4, "kv_num_heads": KV_HEADS}
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def whole(*numbers: Any) -> Array:
    return np.array(numbers, np.int32)


HIDDEN, PROJECTION, BIAS = normal(BATCH, TOKENS, WIDTH), 0.3 * normal(WIDTH, 3 * WIDTH), normal(3 * WIDTH)
PADDED = whole([1, 1, 1, 0, 0], [1, 1, 1, 1, 1])
MASKS = {
    "none": None,
    "keys": PADDED,
    "nothing to see": whole([0] * 5, [1] * 5),
    "ends": whole(3, 5),
    "ends and starts": whole(3, 5, 0, 1),
    "tokens and keys": RANDOM.integers(0, 2, (BATCH, TOKENS, TOKENS)).astype(np.int32),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("unidirectional", [0, 1])
def test_attention_with_masks(mask: str, unidirectional: int) -> None:
    given = [HIDDEN, PROJECTION, BIAS, MASKS[mask]]
    options = {"num_heads": HEADS, "unidirectional": unidirectional}
    program = assert_same_numbers(OneNode("Attention", given, options, stored=(1, 2)))
    (site,) = find_sites(program, ["attention"])
    assert site.bindings["head_count"] == HEADS


@pytest.mark.parametrize("unidirectional", [0, 1])
def test_attention_behind_a_past(unidirectional: int) -> None:
    mask = whole([0, 0] + [1] * 6, [1] * 8)
    given = [HIDDEN, PROJECTION, BIAS, mask, normal(2, BATCH, HEADS, PAST, HEAD_DIM)]
    options = {"num_heads": HEADS, "unidirectional": unidirectional, "scale": 0.2}
    assert_same_numbers(OneNode("Attention", given, options, stored=(1, 2), outputs=2))


def test_attention_with_a_bias() -> None:
    given = [HIDDEN, PROJECTION, BIAS, PADDED, None, normal(1, HEADS, TOKENS, TOKENS)]
    assert_same_numbers(OneNode("Attention", given, {"num_heads": HEADS}, stored=(1, 2)))


def test_attention_with_values_of_another_width() -> None:
    weights, bias = 0.3 * normal(WIDTH, 2 * WIDTH + 12), normal(2 * WIDTH + 12)
    options = {"num_heads": HEADS, "qkv_hidden_sizes": [WIDTH, WIDTH, 12], "mask_filter_value": -1e38}
    assert_same_numbers(OneNode("Attention", [HIDDEN, weights, bias, PADDED], options, stored=(1, 2)))


@pytest.mark.parametrize("per_column", [True, False])
@pytest.mark.parametrize("past", [True, False])
def test_attention_over_codes(per_column: bool, past: bool) -> None:
    codes = RANDOM.integers(0, 256, (BATCH, TOKENS, WIDTH)).astype(np.uint8)
    weights = RANDOM.integers(-127, 128, (WIDTH, 3 * WIDTH)).astype(np.int8)
    scales = np.abs(normal(3 * WIDTH)) / 500 + 1e-4 if per_column else np.array(0.002, np.float32)
    zeros = [np.array(120, np.uint8), np.zeros(scales.shape, np.int8)]
    held = [normal(2, BATCH, HEADS, PAST, HEAD_DIM)] if past else []
    mask = whole([1] * 8, [0, 0, 0] + [1] * 5) if past else PADDED
    given = [codes, weights, BIAS, np.array(0.01, np.float32), scales, mask, *zeros, *held]
    options = {"num_heads": HEADS, "unidirectional": int(past)}
    outputs = 2 if past else 1
    assert_same_numbers(OneNode("QAttention", given, options, stored=(1, 2, 4, 6, 7), outputs=outputs))


QUERY, KEY, VALUE = normal(BATCH, TOKENS, WIDTH), normal(BATCH, KEYS, WIDTH), normal(BATCH, KEYS, HEADS * 6)
CROSS: dict[str, Sequence[Array | None]] = {
    "cross": [QUERY, KEY, VALUE],
    "biased": [QUERY, KEY, VALUE, normal(2 * WIDTH + HEADS * 6)],
    "padded": [QUERY, KEY, VALUE, None, whole([1] * 4 + [0] * 3, [1] * 7)],
    "ends": [QUERY, KEY, VALUE, None, whole(3, 7)],
    "tokens and keys": [QUERY, KEY, VALUE, None, RANDOM.integers(0, 2, (BATCH, TOKENS, KEYS)).astype(np.int32)],
    "by heads": [QUERY, normal(BATCH, HEADS, KEYS, HEAD_DIM), normal(BATCH, HEADS, KEYS, HEAD_DIM)],
    "by heads, biased": [
        QUERY, normal(BATCH, HEADS, KEYS, HEAD_DIM), normal(BATCH, HEADS, KEYS, HEAD_DIM), normal(3 * WIDTH)
    ],
    "added": [QUERY, KEY, VALUE, None, None, normal(1, 1, TOKENS, KEYS)],
}  # fmt: skip


@pytest.mark.parametrize("form", CROSS)
def test_multi_head_attention(form: str) -> None:
    assert_same_numbers(OneNode("MultiHeadAttention", CROSS[form], {"num_heads": HEADS}))


@pytest.mark.parametrize("mask", ["none", "keys", "ends"])
def test_multi_head_attention_that_sees_no_later_key(mask: str) -> None:
    given = [*(normal(BATCH, TOKENS, WIDTH) for _ in range(3)), None, MASKS[mask]]
    assert_same_numbers(OneNode("MultiHeadAttention", given, {"num_heads": HEADS, "unidirectional": 1}))


@pytest.mark.parametrize("unidirectional", [0, 1])
def test_multi_head_attention_behind_a_past(unidirectional: int) -> None:
    mask = whole([0, 0] + [1] * 6, [1] * 8)
    past = [normal(BATCH, HEADS, PAST, HEAD_DIM) for _ in range(2)]
    given = [*(normal(BATCH, TOKENS, WIDTH) for _ in range(3)), None, mask, None, *past]
    options = {"num_heads": HEADS, "unidirectional": unidirectional}
    assert_same_numbers(OneNode("MultiHeadAttention", given, options, outputs=3))


def test_packed_forms_are_those_that_are_not() -> None:
    parts = [normal(BATCH, TOKENS, HEADS, HEAD_DIM) for _ in range(3)]
    plain = [one.reshape(BATCH, TOKENS, WIDTH) for one in parts]
    (expected,) = OneNode("MultiHeadAttention", plain, {"num_heads": HEADS}).reference()
    for given in ([np.stack(parts, 3)], [plain[0], np.stack(parts[1:], 3)]):
        program = OneNode("MultiHeadAttention", given, {"num_heads": HEADS}).program()
        (found,) = program.run(*map(torch.from_numpy, given))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def grouped(tokens: int, past: int = 0, batch: int = BATCH) -> list[Array | None]:
    """query, key, value, past_key, past_value, seqlens_k and total_sequence_length of sequences without padding."""
    widths = [4 * GROUPED_DIM, KV_HEADS * GROUPED_DIM, KV_HEADS * GROUPED_DIM]
    held = [normal(batch, KV_HEADS, past, GROUPED_DIM) for _ in range(2)] if past else [None, None]
    total = past + tokens
    return [
        *(normal(batch, tokens, one) for one in widths),
        *held,
        whole(*[total - 1] * batch),
        np.array(total, np.int32),
    ]


ANGLES = normal(12, GROUPED_DIM // 2)
TURNS = [np.cos(ANGLES), np.sin(ANGLES)]
OPTIONS: dict[str, tuple[dict[str, Any], list[Array | None]]] = {
    "plain": ({}, []),
    "scaled": ({"scale": 0.1}, []),
    "softcap": ({"softcap": 2.0}, []),
    "window": ({"local_window_size": 2}, []),
    "not causal": ({"causal": 0}, []),
    "rotary": ({"do_rotary": 1}, TURNS),
    "rotary, interleaved": ({"do_rotary": 1, "rotary_interleaved": 1}, TURNS),
    "smooth softmax": ({"smooth_softmax": 1}, []),
    "sinks": ({}, [None, None, None, None, normal(4)]),
    "sinks and window": ({"local_window_size": 2}, [None, None, None, None, normal(4)]),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("tokens", "past", "batch"), [(5, 0, 2), (1, 4, 2), (3, 4, 1)])
def test_group_query_attention(option: str, tokens: int, past: int, batch: int) -> None:
    attributes, more = OPTIONS[option]
    given = [*grouped(tokens, past, batch), *more]
    assert_same_numbers(
        OneNode("GroupQueryAttention", given, GROUPED | attributes, outputs=3, stored=(6,)), lowered=tokens == 1
    )


def test_group_query_attention_with_a_bias() -> None:
    given = [*grouped(TOKENS), None, None, None, normal(1, 4, TOKENS, TOKENS)]
    assert_same_numbers(OneNode("GroupQueryAttention", given, GROUPED, outputs=3, stored=(6,)))


def test_group_query_attention_with_packed_inputs() -> None:
    query, key, value, *rest = grouped(TOKENS)
    packed = np.concatenate([query, key, value], axis=2)
    given = [packed, None, None, *rest, *TURNS]
    assert_same_numbers(OneNode("GroupQueryAttention", given, GROUPED | {"do_rotary": 1}, outputs=3, stored=(6,)))


def test_positions_may_be_given() -> None:
    positions = np.arange(TOKENS)[None].repeat(BATCH, 0)
    given = [*grouped(TOKENS), *TURNS, positions]
    assert_same_numbers(OneNode("GroupQueryAttention", given, GROUPED | {"do_rotary": 1}, outputs=3, stored=(6,)))


@pytest.mark.parametrize("buffer", [4, 9])
def test_sequences_of_different_lengths(buffer: int) -> None:
    """The new key of each follows its own past, in a past that grows or in a buffer with room for more."""
    given = grouped(1, buffer)
    given[5], given[6] = whole(4, 2), np.array(5, np.int32)
    node = OneNode("GroupQueryAttention", [*given, *TURNS], GROUPED | {"do_rotary": 1}, outputs=3, stored=(6,))
    program = node.program()
    found = program.run(*(torch.from_numpy(node.inputs[spec.name]) for spec in program.inputs))
    expected = node.reference()
    np.testing.assert_allclose(found[0].numpy(), expected[0], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.shape == theirs.shape
        for sequence, length in enumerate((5, 3)):
            np.testing.assert_allclose(ours[sequence, :, :length].numpy(), theirs[sequence, :, :length], rtol=1e-5)


def test_norms_of_query_and_key_come_before_all_else() -> None:
    query, key, *rest = grouped(TOKENS)
    norms = [normal(GROUPED_DIM) for _ in range(2)]
    normed = []
    for one, weight in ((query, norms[0]), (key, norms[1])):
        heads = one.reshape(BATCH, TOKENS, -1, GROUPED_DIM)
        (y,) = OneNode("SimplifiedLayerNormalization", [heads, weight], {"epsilon": 1e-6}, domain="").reference()
        normed.append(y.reshape(one.shape))
    expected = OneNode("GroupQueryAttention", [*normed, *rest], GROUPED, outputs=3).reference()
    node = OneNode("GroupQueryAttention", [query, key, *rest, *[None] * 7, *norms], GROUPED, outputs=3, stored=(6,))
    program = node.program()
    found = program.run(*(torch.from_numpy(node.inputs[spec.name]) for spec in program.inputs))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_batch_and_past_stay_dynamic() -> None:
    dims = {index: {0: "batch"} for index in range(6)}
    dims[3][2] = dims[4][2] = "past"
    node = OneNode("GroupQueryAttention", grouped(1, 4), GROUPED, outputs=3, dims=dims)
    program = node.program(dynamic=True)
    free = {str(size) for spec in program.inputs for size in spec.shape if not isinstance(size, int)}
    assert free == {"batch", "past"}
    other = OneNode("GroupQueryAttention", grouped(1, 6, 3), GROUPED, outputs=3)
    tensors = [torch.from_numpy(other.inputs[spec.name]) for spec in program.inputs]
    for found in (program.run(*tensors), run_lowered(program, tensors)):
        for ours, theirs in zip(found, other.reference(), strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("by_heads", [True, False])
@pytest.mark.parametrize("positions", [np.array([3]), np.array([[0, 1, 2, 3, 4], [5, 0, 2, 7, 1]])])
def test_rotary_embedding(interleaved: int, by_heads: bool, positions: Array) -> None:
    x = normal(BATCH, HEADS, TOKENS, GROUPED_DIM) if by_heads else normal(BATCH, TOKENS, HEADS * GROUPED_DIM)
    assert_same_numbers(OneNode("RotaryEmbedding", [x, positions, *TURNS], {"interleaved": interleaved}))


def test_rotary_embedding_of_the_first_dims() -> None:
    x = normal(BATCH, TOKENS, HEADS * 2 * GROUPED_DIM)
    options = {"num_heads": HEADS, "rotary_embedding_dim": GROUPED_DIM}
    assert_same_numbers(OneNode("RotaryEmbedding", [x, np.array([0]), *TURNS], options))


@pytest.mark.parametrize(
    ("op", "inputs", "options", "message"),
    [
        ("Attention", [HIDDEN, PROJECTION, BIAS], {"num_heads": 2, "do_rotary": 1}, "turns query and key itself"),
        ("Attention", [HIDDEN, PROJECTION, BIAS], {"num_heads": 2, "past_present_share_buffer": 1}, "share a buffer"),
        ("Attention", [HIDDEN, PROJECTION, BIAS, whole(*range(8))], {"num_heads": 2}, r"\[3 \* batch \+ 2\]"),
        ("MultiHeadAttention", [QUERY], {"num_heads": 2}, "key or value is missing"),
        ("GroupQueryAttention", grouped(5), GROUPED | {"k_quant_type": "PER_TENSOR"}, "cache is quantized"),
        ("GroupQueryAttention", grouped(5), GROUPED | {"sliding_window_cache": 1}, "cache holds a window"),
        ("RotaryEmbedding", [HIDDEN, np.array([0]), *TURNS], {"is_packed_batching": 1}, "sequences are packed"),
        ("PackedAttention", [HIDDEN], {"num_heads": 2}, "not read: com.microsoft.PackedAttention"),
    ],
)
def test_what_is_not_read_is_refused(
    op: str, inputs: list[Array | None], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompilerError, match=message):
        OneNode(op, inputs, options).program()
