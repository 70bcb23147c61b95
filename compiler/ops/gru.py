"""regraft::gru: one layer of ONNX's GRU, with layout 0.

    x [length, batch, input]                 w [directions, 3 * hidden, input]    r [directions, 3 * hidden, hidden]
    b [directions, 6 * hidden]               sequence_lens [batch]                initial_h [directions, batch, hidden]
    -> y [length, directions, batch, hidden], y_h [directions, batch, hidden]

    z = f(x w_z + h r_z + b_z)               n = g(x w_n + (q h) r_n + b_n)
    q = f(x w_q + h r_q + b_q)               h' = (1 - z) n + z h

Gates stand in the order z, q, n; b holds the biases of w and then those of r. Two activations f, g a direction. With
`linear_before_reset`, which is torch's form, n = g(x w_n + b_wn + q (h r_n + b_rn)). Inputs of f and g are clipped
where `clip` is above 0.
aten has no such operator whose trace keeps the length free: aten.gru's is one for every length.

Source: Cho et al. 2014, arXiv:1406.1078; ONNX GRU, opset 14.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from compiler.ops.recurrence import (
    SETTINGS,
    Form,
    differentiated,
    empty_result,
    product_flops,
    run_steps,
    split_directions,
    state_or_zeros,
    torch_weights,
)

SCHEMA = f"""(
    Tensor x, Tensor w, Tensor r, Tensor? b, Tensor? sequence_lens, Tensor? initial_h, bool linear_before_reset,
    {SETTINGS}
) -> (Tensor, Tensor)"""
TORCH_GATES = (1, 0, 2)
"""Where torch's gates q, z, n stand in ONNX's order."""
Result = tuple[Tensor, Tensor]


def gru_reference(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Tensor | None,
    initial_h: Tensor | None,
    linear_before_reset: bool,
    *settings: Any,
) -> Result:
    """The definition, step by step. Differentiable. `settings` are those of a Form."""
    form, first = Form(*settings), state_or_zeros(initial_h, x, r)
    results = []
    for index, (reverse, functions) in enumerate(zip(form.turns, form.functions(), strict=True)):
        inner, outer = (None, None) if b is None else b[index].chunk(2)
        recurrent_bias = x.new_zeros(r.shape[1]) if outer is None else outer
        step = partial(_step, r[index].t(), recurrent_bias, functions, linear_before_reset)
        projected = torch.nn.functional.linear(x, w[index], inner)  # [length, batch, 3 * hidden]
        results.append(run_steps(projected, (first[index],), sequence_lens, reverse, step))
    return torch.stack([y for y, _ in results], 1), torch.stack([states[0] for _, states in results])


def _step(
    weight: Tensor, bias: Tensor, functions: list[Any], linear_before_reset: bool, row: Tensor,
    states: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:  # fmt: skip
    f, g = functions
    (hidden,) = states
    width = hidden.shape[-1]
    gates, candidate = torch.split(row, [2 * width, width], -1)
    z, q = f(gates + hidden @ weight[:, : 2 * width] + bias[: 2 * width]).chunk(2, -1)  # each [batch, hidden]
    last_weight, last_bias = weight[:, 2 * width :], bias[2 * width :]
    recurrent = (
        q * (hidden @ last_weight + last_bias) if linear_before_reset else (q * hidden) @ last_weight + last_bias
    )
    return ((1 - z) * g(candidate + recurrent) + z * hidden,)


def _computed(*inputs: Any) -> Result:
    """As the reference, by torch's own kernel where the form is torch's."""
    x, w, r, b, sequence_lens, initial_h, linear_before_reset, *settings = inputs
    form = Form(*settings)
    usual = sequence_lens is None and linear_before_reset and x.shape[0] > 0
    if not usual or not form.uses("sigmoid", "tanh"):
        return gru_reference(*inputs)
    both, backwards = len(form.turns) > 1, form.turns == [True]
    x, first = x.flip(0) if backwards else x, state_or_zeros(initial_h, x, r)
    y, last = torch.gru(x, first, torch_weights(w, r, b, TORCH_GATES), b is not None, 1, 0.0, False, both, False)
    return split_directions(y, len(form.turns), backwards), last


@torch.library.custom_op("regraft::gru", mutates_args=(), schema=SCHEMA)
def gru(*inputs: Any) -> Result:
    """GRU as the module's docstring defines it. Raises ValueError for an unknown direction or activation."""
    return _computed(*inputs)


@gru.register_fake
def _(x: Tensor, w: Tensor, r: Tensor, *rest: Any) -> Result:
    return empty_result(x, r)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.settings = inputs[6:]


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    return differentiated(_computed, (*ctx.saved_tensors, *ctx.settings), gradients)


gru.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula(torch.ops.regraft.gru)
def _flops(x_shape: Any, w_shape: Any, r_shape: Any, *rest: Any, **options: Any) -> int:
    return product_flops(x_shape, w_shape, r_shape)
