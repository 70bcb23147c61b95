"""causal_conv against loops, ONNX's reference evaluator and ONNX Runtime's kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from compiler.ops.causal_conv import causal_conv
from tests.ops.one_node_model import run_nodes

CHANNELS = 4
NAMES = ("input", "weight", "bias", "past_state")


def inputs(width: int = 3, tokens: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, CHANNELS, tokens), (CHANNELS, 1, width), (CHANNELS,), (2, CHANNELS, width - 1))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def by_loops(
    input: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """One number at a time, from the words of the docstring."""
    batch, channels, tokens = input.shape
    width = weight.shape[-1]
    output = torch.zeros_like(input)
    state = torch.zeros(batch, channels, width - 1, dtype=input.dtype)
    for b in range(batch):
        for c in range(channels):
            carried = [0.0] * (width - 1) if past is None else past[b, c].tolist()
            x = carried + input[b, c].tolist()
            for t in range(tokens):
                total = 0.0 if bias is None else float(bias[c])
                total += sum(float(weight[c, 0, j]) * x[t + j] for j in range(width))
                output[b, c, t] = total / (1 + math.exp(-total)) if activation in ("silu", "swish") else total
            for place in range(width - 1):
                state[b, c, place] = x[tokens + place]
    return output, state


@pytest.mark.parametrize("activation", ["none", "silu", "swish"])
@pytest.mark.parametrize(("width", "tokens"), [(3, 6), (1, 4), (4, 1), (4, 2)])
@pytest.mark.parametrize("optional", [True, False])
def test_against_loops(width: int, tokens: int, activation: str, optional: bool) -> None:
    given = inputs(width, tokens)
    arguments = (*given[:2], *(given[2:] if optional else (None, None)), activation)
    torch.testing.assert_close(causal_conv(*arguments), by_loops(*arguments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("optional", [True, False])
def test_onnx_and_its_runtime_agree(activation: str, optional: bool) -> None:
    given = inputs(dtype=torch.float32)
    kept = given if optional else given[:2]
    names = list(NAMES[: len(kept)])
    arrays = {name: one.numpy() for name, one in zip(names, kept, strict=True)}
    found = causal_conv(*kept, *([None] * (4 - len(kept))), activation)
    node = helper.make_node(
        "CausalConvWithState", names, ["output", "state"], domain="com.microsoft", activation=activation
    )
    for ours, theirs in zip(found, run_nodes([node], arrays, {}, ["output", "state"]), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)
    node = helper.make_node("CausalConvWithState", names, ["output", "state"], activation=activation)
    for ours, theirs in zip(found, ReferenceEvaluator(node).run(None, arrays), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)


def test_two_halves_joined_by_the_state_are_the_whole() -> None:
    input, weight, bias, past = inputs()
    whole, last = causal_conv(input, weight, bias, past, "silu")
    first, state = causal_conv(input[..., :2], weight, bias, past, "silu")
    second, end = causal_conv(input[..., 2:], weight, bias, state, "silu")
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_gradients_against_finite_differences(activation: str) -> None:
    leaves = [one.requires_grad_() for one in inputs()]
    assert torch.autograd.gradcheck(lambda *given: causal_conv(*given, activation), leaves, fast_mode=True)


def test_the_op_is_well_registered() -> None:
    given = inputs()
    for arguments in ((*given, "silu"), (*given[:2], None, None, "none")):
        torch.library.opcheck(torch.ops.regraft.causal_conv.default, arguments)


def test_work_is_that_of_the_products() -> None:
    with FlopCounterMode(display=False) as counter:
        causal_conv(*inputs(), "none")
    assert counter.get_total_flops() == 2 * (2 * CHANNELS * 6) * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "activation is 'relu'"),
        ({"weight": torch.ones(CHANNELS, 2, 3)}, r"not \[channels, 1, k\]"),
        ({"bias": torch.ones(3)}, "bias"),
        ({"past_state": torch.ones(2, CHANNELS, 3)}, "past_state"),
    ],
)
def test_inputs_that_do_not_fit(change: dict[str, object], message: str) -> None:
    given = dict(zip(NAMES, inputs(dtype=torch.float32), strict=True)) | {"activation": "none"} | change
    with pytest.raises(ValueError, match=message):
        causal_conv(*given.values())
