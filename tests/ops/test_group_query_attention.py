"""The reference against plain loops in float64, against ONNX Runtime's own kernel, and under torch's own checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from one_node_model import run_nodes
from onnx import helper
from torch import Tensor

from compiler.ops.group_query_attention import NO_WINDOW, group_query_attention

CAPACITY, POSITIONS = 16, 32


@dataclass(frozen=True)
class Case:
    """What is attended to and how: `pasts` and `counts` are the keys and the new tokens of each row."""

    pasts: tuple[int, ...]
    tokens: int
    counts: tuple[int, ...] = ()
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rotary_dim: int = 0
    interleaved: bool = False
    window: int = NO_WINDOW
    softcap: float = 0.0
    scale: float = 0.25
    scales: int = 0
    """Of int8 buffers: 0 for float ones, 1, or one a channel."""

    @property
    def row_counts(self) -> tuple[int, ...]:
        return self.counts or (self.tokens,) * len(self.pasts)


CASES = {
    "one token of several rows": Case(pasts=(7, 0, 3), tokens=1),
    "one token, every head its own key": Case(pasts=(5,), tokens=1, heads=3, kv_heads=3),
    "one token, all heads one key": Case(pasts=(5, 2), tokens=1, heads=4, kv_heads=1),
    "a prompt": Case(pasts=(0,), tokens=6),
    "prompts of several lengths": Case(pasts=(0, 0, 0), tokens=6, counts=(6, 4, 1), rotary_dim=16),
    "a chunk": Case(pasts=(4,), tokens=5),
    "a chunk that fills the buffer": Case(pasts=(11,), tokens=5, rotary_dim=16),
    "rotated": Case(pasts=(7, 0, 3), tokens=1, rotary_dim=16),
    "rotated in part": Case(pasts=(4,), tokens=5, head_dim=32, rotary_dim=16),
    "neighbours rotated": Case(pasts=(4,), tokens=5, rotary_dim=16, interleaved=True),
    "neighbours rotated in part": Case(pasts=(4, 9), tokens=1, head_dim=32, rotary_dim=16, interleaved=True),
    "a window over a chunk": Case(pasts=(4,), tokens=5, window=3, rotary_dim=16),
    "a window over a prompt": Case(pasts=(0,), tokens=9, window=3),
    "a window at several rows": Case(pasts=(9, 2, 5), tokens=1, window=4),
    "a window of one": Case(pasts=(9, 2), tokens=1, window=1),
    "softcap": Case(pasts=(4,), tokens=5, softcap=2.0, rotary_dim=16),
    "softcap and a window": Case(pasts=(9, 2), tokens=1, softcap=2.0, window=4),
    "a scale": Case(pasts=(4,), tokens=5, scale=1.3),
}


TENSORS = (
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "seqlens_k",
    "cos",
    "sin",
    "k_scale",
    "v_scale",
)


@dataclass
class Given:
    """Random inputs for a case, in float64."""

    case: Case
    query: Tensor
    key: Tensor
    value: Tensor
    past_key: Tensor
    past_value: Tensor
    seqlens_k: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    @property
    def total(self) -> int:
        return int(self.seqlens_k.max()) + 1

    @property
    def settings(self) -> tuple[Any, ...]:
        case = self.case
        return (case.heads, case.kv_heads, case.scale, case.softcap, case.window, case.interleaved)

    def in_float32(self) -> Given:
        held = {name: getattr(self, name) for name in TENSORS}
        floats = {name: one.float() for name, one in held.items() if one is not None and one.is_floating_point()}
        return replace(self, **floats)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        *before, cos, sin, k_scale, v_scale = (getattr(self, name) for name in TENSORS)
        return group_query_attention(*before, self.total, cos, sin, k_scale, v_scale, *self.settings)


def given(case: Case, dtype: torch.dtype = torch.float64) -> Given:
    generator = torch.Generator().manual_seed(len(case.pasts) * 100 + case.tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    batch, kv_width = len(case.pasts), case.kv_heads * case.head_dim
    buffers: list[Tensor] = [normal(batch, case.kv_heads, CAPACITY, case.head_dim) for _ in range(2)]
    lengths = [past + count - 1 for past, count in zip(case.pasts, case.row_counts, strict=True)]
    made = Given(
        case,
        normal(batch, case.tokens, case.heads * case.head_dim),
        normal(batch, case.tokens, kv_width),
        normal(batch, case.tokens, kv_width),
        *buffers,
        torch.tensor(lengths, dtype=torch.int32),
    )
    if case.rotary_dim:
        angles = 3 * normal(POSITIONS, case.rotary_dim // 2)
        made = replace(made, cos=angles.cos(), sin=angles.sin())
    if case.scales:
        # the smallest scales hold 2.5 standard deviations: some numbers are beyond what int8 holds
        scales = [0.02 + 0.02 * normal(case.scales).abs() for _ in range(2)]
        codes = [
            torch.randint(-128, 128, buffer.shape, generator=generator, dtype=torch.int64).to(torch.int8)
            for buffer in buffers
        ]
        made = replace(made, k_scale=scales[0], v_scale=scales[1], past_key=codes[0], past_value=codes[1])
    return made


def int8_cases() -> dict[str, Case]:
    """Every case with one scale, and with one a channel."""
    return {
        f"{name}, {granularity}": replace(case, scales=1 if granularity == "tensor" else case.kv_heads * case.head_dim)
        for name, case in CASES.items()
        for granularity in ("tensor", "channel")
    }


ALL_CASES = {**CASES, **int8_cases()}


def loops(g: Given) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas, a number at a time: what is written where no token is stays as the buffers were."""
    case, dim = g.case, g.case.head_dim
    output = torch.zeros_like(g.query)
    keys, values = g.past_key.clone(), g.past_value.clone()
    for row, (past, count) in enumerate(zip(case.pasts, case.row_counts, strict=True)):
        for token in range(count):
            place = past + token
            for head in range(case.kv_heads):
                span = slice(head * dim, (head + 1) * dim)
                keys[row, head, place] = held(turned(g.key[row, token, span], place, g), g.k_scale, span, keys.dtype)
                values[row, head, place] = held(g.value[row, token, span], g.v_scale, span, values.dtype)
    for row, (past, count) in enumerate(zip(case.pasts, case.row_counts, strict=True)):
        for token in range(count):
            place = past + token
            first = 0 if case.window == NO_WINDOW else max(0, place - case.window + 1)
            for head in range(case.heads):
                kv_head = head // (case.heads // case.kv_heads)
                span = slice(kv_head * dim, (kv_head + 1) * dim)
                query = turned(g.query[row, token, head * dim : (head + 1) * dim], place, g)
                scores = [
                    query @ seen(keys[row, kv_head, other], g.k_scale, span) * case.scale
                    for other in range(first, place + 1)
                ]
                if case.softcap:
                    scores = [case.softcap * torch.tanh(score / case.softcap) for score in scores]
                powers = [torch.exp(score) for score in scores]
                mixed = torch.zeros(dim, dtype=output.dtype)
                for power, other in zip(powers, range(first, place + 1), strict=True):
                    mixed = mixed + power * seen(values[row, kv_head, other], g.v_scale, span)
                output[row, token, head * dim : (head + 1) * dim] = mixed / sum(powers)
    return output, keys, values


def turned(x: Tensor, place: int, g: Given) -> Tensor:
    """x [head_dim] rotated by the angles of `place`."""
    if g.cos is None or g.sin is None:
        return x
    result = x.clone()
    for pair in range(g.case.rotary_dim // 2):
        a, b = (2 * pair, 2 * pair + 1) if g.case.interleaved else (pair, pair + g.case.rotary_dim // 2)
        cos, sin = g.cos[place, pair], g.sin[place, pair]
        result[a], result[b] = x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin
    return result


def held(x: Tensor, scale: Tensor | None, span: slice, dtype: torch.dtype) -> Tensor:
    """x [head_dim] as a buffer holds it: half-way cases go to the even code, numbers beyond int8 to its ends."""
    if scale is None:
        return x
    steps = scale.expand(len(x)) if scale.numel() == 1 else scale[span]
    codes = [min(127, max(-128, round(float(a) / float(s)))) for a, s in zip(x, steps, strict=True)]
    return torch.tensor(codes, dtype=dtype)


def seen(held_numbers: Tensor, scale: Tensor | None, span: slice) -> Tensor:
    if scale is None:
        return held_numbers
    return held_numbers.double() * (scale if scale.numel() == 1 else scale[span])


def onnx_runtime(g: Given) -> list[Tensor]:
    """What com.microsoft GroupQueryAttention gives, in float32."""
    g = g.in_float32()
    arrays = {name: getattr(g, name).numpy() for name in TENSORS if getattr(g, name) is not None}
    stored = {name: arrays.pop(name) for name in ("cos", "sin", "k_scale", "v_scale") if name in arrays}
    stored["total"] = np.array(g.total, np.int32)
    slots = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total", "cos", "sin", "", "", ""]
    slots = [slot if slot in arrays or slot in stored else "" for slot in [*slots, "k_scale", "v_scale"]]
    attributes: dict[str, Any] = {}
    if g.case.scales:
        granularity = "PER_TENSOR" if g.case.scales == 1 else "PER_CHANNEL"
        attributes = {"kv_cache_bit_width": 8, "k_quant_type": granularity, "v_quant_type": granularity}
    node = helper.make_node(
        "GroupQueryAttention",
        slots,
        ["output", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=g.case.heads,
        kv_num_heads=g.case.kv_heads,
        scale=g.case.scale,
        softcap=g.case.softcap,
        local_window_size=g.case.window,
        do_rotary=int(g.cos is not None),
        rotary_interleaved=int(g.case.interleaved),
        **attributes,
    )
    return [torch.from_numpy(one) for one in run_nodes([node], arrays, stored, list(node.output))]


def tokens_that_are(g: Given, output: Tensor, *buffers: Tensor) -> list[Tensor]:
    """Outputs of tokens that are no padding, and what the buffers hold of them and of earlier ones."""
    parts = []
    for row, (past, count) in enumerate(zip(g.case.pasts, g.case.row_counts, strict=True)):
        parts.append(output[row, :count])
        parts.extend(buffer[row, :, : past + count] for buffer in buffers)
    return parts


@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES)
def test_against_loops(case: Case):
    g = given(case)
    found, expected = tokens_that_are(g, *g.run()), tokens_that_are(g, *loops(g))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES)
def test_against_onnx_runtime(case: Case):
    g = given(case)
    found, expected = tokens_that_are(g, *g.in_float32().run()), tokens_that_are(g, *onnx_runtime(g))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # dequantized numbers go up to 10


def test_a_number_half_way_between_codes_becomes_the_even_one():
    case = Case(pasts=(0,), tokens=4, heads=2, kv_heads=2, scales=1)
    halves = torch.arange(4 * 32).view(1, 4, 32).double() / 2 - 32
    g = replace(given(case), key=halves, value=-4 * halves, k_scale=torch.ones(1), v_scale=torch.ones(1))
    for buffers in (g.in_float32().run()[1:], onnx_runtime(g)[1:]):
        keys, values = (one[0, :, :4].transpose(0, 1).flatten().tolist() for one in buffers)
        assert keys == [round(number) for number in halves.flatten().tolist()]
        assert values == [min(127, round(-4 * number)) for number in halves.flatten().tolist()]


def test_a_prompt_attends_to_its_keys_as_int8_holds_them():
    """Not to the float keys: chunks of a prompt, its whole and one token at a time give the same."""
    case = Case(pasts=(0,), tokens=6, rotary_dim=16, scales=32)
    g = given(case)
    whole, *_ = g.run()
    key, value = g.past_key, g.past_value
    for token in range(6):
        here = slice(token, token + 1)
        piece = replace(
            g, case=replace(case, pasts=(token,), tokens=1), past_key=key, past_value=value,
            query=g.query[:, here], key=g.key[:, here], value=g.value[:, here],
            seqlens_k=torch.tensor([token], dtype=torch.int32),
        )  # fmt: skip
        output, key, value = piece.run()
        torch.testing.assert_close(output, whole[:, here], rtol=1e-12, atol=1e-12)


DIFFERENTIABLE = ("a chunk", "rotated", "a window over a chunk", "softcap", "prompts of several lengths")


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_against_those_of_the_loops(name: str):
    gradients = []
    for attend in (Given.run, loops):
        g = given(CASES[name])
        leaves = [one.requires_grad_() for one in (g.query, g.key, g.value)]
        score = sum((one.sin() * torch.arange(one.shape[-1])).sum() for one in tokens_that_are(g, *attend(g)))
        assert isinstance(score, Tensor)
        gradients.append(torch.autograd.grad(score, leaves))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_schema_fake_and_autograd_agree():
    g = given(CASES["rotated"], torch.float32)
    *before, cos, sin, k_scale, v_scale = (getattr(g, name) for name in TENSORS)
    arguments = [*(one.requires_grad_() for one in before[:3]), *before[3:], g.total, cos, sin, k_scale, v_scale]
    torch.library.opcheck(torch.ops.regraft.group_query_attention.default, (*arguments, *g.settings))
