"""regraft::causal_conv: a depthwise convolution over the last k positions, with the state that carries it on.

    input [batch, channels, tokens]     weight [channels, 1, k]     bias [channels] or none
    past_state [batch, channels, k - 1] or none (zeros)
    ->  output [batch, channels, tokens], present_state [batch, channels, k - 1]

With x = past_state followed by input,

    output[t] = activation(bias + sum over j < k of weight[j] * x[t + j])     present_state = the last k - 1 of x

`activation` is `none`, or `silu` (also called `swish`).
Source: Gu and Dao 2023, arXiv:2312.00752, figure 3. The words are those of ONNX CausalConvWithState, opset 27.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, Tensor? past_state, str activation) "
    "-> (Tensor output, Tensor present_state)"
)
ACTIVATIONS = ("none", "silu", "swish")


def causal_conv_reference(
    input: Tensor, weight: Tensor, bias: Tensor | None, past_state: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """The definition, in ATen operators. Differentiable."""
    carried = weight.shape[-1] - 1
    if past_state is None:
        extended = torch.nn.functional.pad(input, (carried, 0))
    else:
        extended = torch.cat([past_state, input], dim=2)  # [batch, channels, k - 1 + tokens]
    output = torch.nn.functional.conv1d(extended, weight, bias, groups=weight.shape[0])
    if activation != "none":
        output = torch.nn.functional.silu(output)
    return output.contiguous(), extended[..., extended.shape[2] - carried :].clone()


@torch.library.custom_op("regraft::causal_conv", mutates_args=(), schema=SCHEMA)
def causal_conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, past_state: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """The convolution as the module's docstring defines it. Raises ValueError for inputs that do not fit."""
    _check(input, weight, bias, past_state, activation)
    output, state = causal_conv_reference(input, weight, bias, past_state, activation)
    return output, state.contiguous()


@causal_conv.register_fake
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, past_state: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    _check(input, weight, bias, past_state, activation)
    return input.new_empty(input.shape), input.new_empty((*input.shape[:2], weight.shape[-1] - 1))


def _check(input: Tensor, weight: Tensor, bias: Tensor | None, past_state: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; {', '.join(ACTIVATIONS)} are possible")
    if input.dim() != 3 or weight.dim() != 3 or weight.shape[1] != 1 or weight.shape[0] != input.shape[1]:
        raise ValueError(f"weight {tuple(weight.shape)} for input {tuple(input.shape)} is not [channels, 1, k]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} is not [{weight.shape[0]}]")
    if past_state is not None and past_state.shape[1:] != (weight.shape[0], weight.shape[-1] - 1):
        raise ValueError(f"past_state {tuple(past_state.shape)} is not [batch, {weight.shape[0]}, k - 1]")


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.activation = inputs[4]


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """Runs the reference again and differentiates it."""
    with torch.enable_grad():
        leaves: list[Any] = [None if one is None else one.detach().requires_grad_() for one in ctx.saved_tensors]
        input, weight, bias, past_state = leaves
        outputs = causal_conv_reference(input, weight, bias, past_state, ctx.activation)
        wanted = [one for one in leaves if one is not None]
        found = iter(torch.autograd.grad(outputs, wanted, gradients, allow_unused=True))
    return (*(None if one is None else next(found) for one in leaves), None)


causal_conv.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula(torch.ops.regraft.causal_conv)  # type: ignore[untyped-decorator, unused-ignore]
def _flops(input: Sequence[int], weight: Sequence[int], *others: Any, **options: Any) -> int:
    return 2 * math.prod(input) * weight[-1]
