"""linear_attention against loops over the papers' formulas, ONNX's reference evaluator and ONNX Runtime's kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from compiler.ops.linear_attention import DELTA, GATED, UPDATE_RULES, linear_attention, linear_attention_reference
from compiler.ops.linear_attention_chunks import CHANNELS_CHUNK, CHUNK
from tests.ops.one_node_model import run_nodes

Q_HEADS, KV_HEADS, D_K, D_V = 4, 2, 3, 5
NAMES = ("query", "key", "value", "past_state", "decay", "beta")
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
FORMS = [
    (rule, per_channel, shared)
    for rule in UPDATE_RULES
    for per_channel in ([False, True] if rule in GATED else [False])
    for shared in ([False, True] if rule in DELTA else [False])
]


def inputs(
    rule: str, per_channel: bool = False, shared: bool = False, tokens: int = 5, dtype: torch.dtype = torch.float64
) -> Inputs:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    key = torch.nn.functional.normalize(normal(2, tokens, KV_HEADS, D_K), dim=-1).flatten(2)
    decay = -normal(2, tokens, KV_HEADS * (D_K if per_channel else 1)).abs() if rule in GATED else None
    beta = normal(2, tokens, 1 if shared else KV_HEADS).sigmoid() if rule in DELTA else None
    value, past = normal(2, tokens, KV_HEADS * D_V), normal(2, KV_HEADS, D_K, D_V)
    return normal(2, tokens, Q_HEADS * D_K), key, value, past, decay, beta


def by_loops(given: Inputs, rule: str, scale: float) -> tuple[Tensor, Tensor]:
    """One number at a time, from the words of the docstring."""
    query, key, value, past, decay, beta = given
    batch, tokens, _ = query.shape
    assert past is not None
    state, output = past.clone(), torch.zeros(batch, tokens, Q_HEADS * D_V, dtype=torch.float64)
    for b in range(batch):
        for t in range(tokens):
            for h in range(KV_HEADS):
                s = state[b, h]
                k = [float(key[b, t, h * D_K + i]) for i in range(D_K)]
                if decay is not None:
                    for i in range(D_K):
                        s[i] *= math.exp(decay[b, t, h * D_K + i if decay.shape[-1] > KV_HEADS else h])
                v = [float(value[b, t, h * D_V + j]) for j in range(D_V)]
                if beta is not None:
                    rate = float(beta[b, t, h if beta.shape[-1] > 1 else 0])
                    v = [rate * (v[j] - sum(float(s[i, j]) * k[i] for i in range(D_K))) for j in range(D_V)]
                for i in range(D_K):
                    for j in range(D_V):
                        s[i, j] += k[i] * v[j]
            for h in range(Q_HEADS):
                s = state[b, h // (Q_HEADS // KV_HEADS)]
                for j in range(D_V):
                    read = sum(float(s[i, j] * query[b, t, h * D_K + i]) for i in range(D_K))
                    output[b, t, h * D_V + j] = scale * read
    return output, state


@pytest.mark.parametrize(("rule", "per_channel", "shared"), FORMS)
def test_against_loops(rule: str, per_channel: bool, shared: bool) -> None:
    given = inputs(rule, per_channel, shared)
    expected = by_loops(given, rule, 0.7)
    for function in (linear_attention_reference, linear_attention):
        found = function(*given, Q_HEADS, KV_HEADS, rule, 0.7)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rule", "per_channel", "shared"), FORMS)
@pytest.mark.parametrize("tokens", [0, 1, CHANNELS_CHUNK, CHUNK, 2 * CHUNK + 7])
def test_chunks_of_any_length_give_what_single_tokens_give(
    rule: str, per_channel: bool, shared: bool, tokens: int
) -> None:
    given = inputs(rule, per_channel, shared, tokens)
    expected = linear_attention_reference(*given, Q_HEADS, KV_HEADS, rule, 0.0)
    torch.testing.assert_close(linear_attention(*given, Q_HEADS, KV_HEADS, rule, 0.0), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("per_channel", [False, True])
def test_rates_above_one_turn_the_state_around(per_channel: bool) -> None:
    *given, beta = inputs("gated_delta", per_channel, tokens=2 * CHUNK + 7)
    assert beta is not None
    given.append(2 * beta)  # I - beta k k^T has eigenvalues from -1 to 1
    expected = by_loops(given, "gated_delta", 1.0)
    for function in (linear_attention_reference, linear_attention):
        found = function(*given, Q_HEADS, KV_HEADS, "gated_delta", 1.0)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_several_householder_steps_a_token() -> None:
    """DeltaProduct, arXiv:2502.10297, eq. 6: S_t = (product of I - beta_i k_i k_i^T) e^g S + what each writes."""
    steps, tokens = 3, 5
    query, key, value, past, _, beta = inputs("delta", tokens=steps * tokens)
    assert past is not None
    assert beta is not None
    first = torch.arange(steps * tokens) % steps == 0
    decay = torch.where(first[:, None], torch.tensor(-0.3, dtype=torch.float64), 0.0).expand(2, -1, KV_HEADS)
    given = (query, key, value, past, decay, 2 * beta, Q_HEADS, KV_HEADS, "gated_delta", 1.0)
    found, state = linear_attention(*given)
    expected = past.clone()
    for t in range(tokens):
        expected = math.exp(-0.3) * expected
        for place in range(t * steps, (t + 1) * steps):
            k = key[:, place].view(2, KV_HEADS, D_K, 1)
            rate = 2 * beta[:, place].view(2, KV_HEADS, 1, 1)
            turned = torch.eye(D_K, dtype=torch.float64) - rate * k @ k.transpose(2, 3)
            expected = turned @ expected + rate * k @ value[:, place].view(2, KV_HEADS, 1, D_V)
        q = query[:, t * steps + steps - 1].view(2, KV_HEADS, -1, D_K)
        read = (q @ expected).flatten(1)
        torch.testing.assert_close(found[:, t * steps + steps - 1], read, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_state_that_is_forgotten_leaves_no_trace(per_channel: bool) -> None:
    query, key, value, past, decay, beta = inputs("gated_delta", per_channel, tokens=6, dtype=torch.float32)
    assert decay is not None
    decay[:, 2] = -torch.inf
    given = (query, key, value, past, decay, beta)
    expected = linear_attention_reference(*given, Q_HEADS, KV_HEADS, "gated_delta", 0.0)
    torch.testing.assert_close(linear_attention(*given, Q_HEADS, KV_HEADS, "gated_delta", 0.0), expected)


@pytest.mark.parametrize(("rule", "per_channel", "shared"), FORMS)
@pytest.mark.parametrize("with_past", [True, False])
def test_onnx_and_its_runtime_agree(rule: str, per_channel: bool, shared: bool, with_past: bool) -> None:
    given = list(inputs(rule, per_channel, shared, dtype=torch.float32))
    given[3] = given[3] if with_past else None
    names = [name if one is not None else "" for name, one in zip(NAMES, given, strict=True)]
    arrays = {name: one.numpy() for name, one in zip(NAMES, given, strict=True) if one is not None}
    options = {"q_num_heads": Q_HEADS, "kv_num_heads": KV_HEADS, "update_rule": rule}
    found = linear_attention(*given, Q_HEADS, KV_HEADS, rule, 0.0)
    node = helper.make_node("LinearAttention", names, ["output", "state"], domain="com.microsoft", **options)
    for ours, theirs in zip(found, run_nodes([node], arrays, {}, ["output", "state"]), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)
    node = helper.make_node("LinearAttention", names, ["output", "state"], **options)
    for ours, theirs in zip(found, ReferenceEvaluator(node).run(None, arrays), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_keeps_the_dtype_of_the_state(dtype: torch.dtype, tolerance: float) -> None:
    query, key, value, past, decay, beta = inputs("gated_delta")
    half = [one.to(dtype) for one in (query, key, value, decay, beta)]
    rounded = [one.double() for one in half]
    found, state = linear_attention(*half[:3], past.float(), *half[3:], Q_HEADS, KV_HEADS, "gated_delta", 0.0)
    expected, _ = linear_attention_reference(*rounded[:3], past, *rounded[3:], Q_HEADS, KV_HEADS, "gated_delta", 0.0)
    assert (found.dtype, state.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rule", "per_channel", "shared"), FORMS)
def test_gradients_against_finite_differences(rule: str, per_channel: bool, shared: bool) -> None:
    given = inputs(rule, per_channel, shared, tokens=3)
    leaves = [one.requires_grad_() for one in given if one is not None]

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        waiting = iter(tensors)
        full = [None if one is None else next(waiting) for one in given]
        return linear_attention(*full, Q_HEADS, KV_HEADS, rule, 0.0)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_the_op_is_well_registered() -> None:
    for given in (inputs("gated_delta"), (*inputs("linear")[:3], None, None, None)):
        rule = "linear" if given[4] is None else "gated_delta"
        torch.library.opcheck(torch.ops.regraft.linear_attention.default, (*given, Q_HEADS, KV_HEADS, rule, 0.5))


def test_work_is_that_of_reading_and_writing_the_state() -> None:
    given = inputs("gated_delta", tokens=7)
    with FlopCounterMode(display=False) as counter:
        linear_attention(*given, Q_HEADS, KV_HEADS, "gated_delta", 0.0)
    assert counter.get_total_flops() == 2 * 2 * 7 * D_K * D_V * (Q_HEADS + 2 * KV_HEADS)


@pytest.mark.parametrize(
    ("rule", "change", "message"),
    [
        ("quadratic", {}, "update_rule is 'quadratic'"),
        ("gated", {"decay": None}, "needs decay"),
        ("linear", {"beta": torch.ones(2, 5, 2)}, "takes no beta"),
        ("linear", {"key": torch.ones(2, 5, 5)}, "do not fit"),
        ("linear", {"value": torch.ones(2, 5, 5)}, "has no 2 heads"),
        ("gated", {"decay": torch.ones(2, 5, 3)}, "neither per head nor per channel"),
        ("delta", {"beta": torch.ones(2, 5, 3)}, "not per head"),
        ("linear", {"past_state": torch.ones(2, 2, 5, 3)}, "past_state"),
    ],
)
def test_inputs_that_do_not_fit(rule: str, change: dict[str, Tensor | None], message: str) -> None:
    given = dict(zip(NAMES, inputs(rule, dtype=torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        linear_attention(*given.values(), Q_HEADS, KV_HEADS, rule, 0.0)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key heads"):
        linear_attention(*inputs("linear"), 4, 3, "linear", 0.0)


def test_it_exports_with_symbolic_sizes() -> None:
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ops.regraft.linear_attention(
                query, key, value, None, None, None, Q_HEADS, KV_HEADS, "linear", 0.0
            )

    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    given = inputs("linear")[:3]
    exported = torch.export.export(Module(), given, dynamic_shapes=(dynamic,) * 3)
    larger = [torch.cat([one, one], dim=1) for one in given]
    expected = linear_attention_reference(*larger, None, None, None, Q_HEADS, KV_HEADS, "linear", 0.0)
    torch.testing.assert_close(exported.module()(*larger), expected)
