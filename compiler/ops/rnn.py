"""regraft::rnn: one layer of ONNX's RNN (Elman's network), with layout 0.

    x [length, batch, input]                 w [directions, hidden, input]        r [directions, hidden, hidden]
    b [directions, 2 * hidden]               sequence_lens [batch]                initial_h [directions, batch, hidden]
    -> y [length, directions, batch, hidden], y_h [directions, batch, hidden]

    h' = f(x w + h r + b)

b holds the bias of w and then that of r. One activation f a direction; its inputs are clipped where `clip` is above 0.
aten has no such operator whose trace keeps the length free: aten.rnn_tanh's is one for every length.

Source: Elman 1990; ONNX RNN, opset 14.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from compiler.ops.recurrence import (
    SETTINGS,
    Activation,
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
    Tensor x, Tensor w, Tensor r, Tensor? b, Tensor? sequence_lens, Tensor? initial_h, {SETTINGS}
) -> (Tensor, Tensor)"""
Result = tuple[Tensor, Tensor]


def rnn_reference(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Tensor | None,
    initial_h: Tensor | None,
    *settings: Any,
) -> Result:
    """The definition, step by step. Differentiable. `settings` are those of a Form."""
    form, first = Form(*settings), state_or_zeros(initial_h, x, r)
    results = []
    for index, (reverse, functions) in enumerate(zip(form.turns, form.functions(), strict=True)):
        biases = None if b is None else torch.unflatten(b[index], 0, (2, -1)).sum(0)
        projected = torch.nn.functional.linear(x, w[index], biases)  # [length, batch, hidden]
        step = partial(_step, r[index].t(), functions[0])
        results.append(run_steps(projected, (first[index],), sequence_lens, reverse, step))
    return torch.stack([y for y, _ in results], 1), torch.stack([states[0] for _, states in results])


def _step(weight: Tensor, function: Activation, row: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (function(row + states[0] @ weight),)


def _computed(*inputs: Any) -> Result:
    """As the reference, by torch's own kernel where the form is torch's."""
    x, w, r, b, sequence_lens, initial_h, *settings = inputs
    form = Form(*settings)
    kernel = torch.rnn_tanh if form.uses("tanh") else torch.rnn_relu if form.uses("relu") else None
    if kernel is None or sequence_lens is not None or x.shape[0] == 0:
        return rnn_reference(*inputs)
    both, backwards = len(form.turns) > 1, form.turns == [True]
    x, first = x.flip(0) if backwards else x, state_or_zeros(initial_h, x, r)
    y, last = kernel(x, first, torch_weights(w, r, b, (0,)), b is not None, 1, 0.0, False, both, False)
    return split_directions(y, len(form.turns), backwards), last


@torch.library.custom_op("regraft::rnn", mutates_args=(), schema=SCHEMA)
def rnn(*inputs: Any) -> Result:
    """RNN as the module's docstring defines it. Raises ValueError for an unknown direction or activation."""
    return _computed(*inputs)


@rnn.register_fake
def _(x: Tensor, w: Tensor, r: Tensor, *rest: Any) -> Result:
    return empty_result(x, r)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.settings = inputs[6:]


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    return differentiated(_computed, (*ctx.saved_tensors, *ctx.settings), gradients)


rnn.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula(torch.ops.regraft.rnn)
def _flops(x_shape: Any, w_shape: Any, r_shape: Any, *rest: Any, **options: Any) -> int:
    return product_flops(x_shape, w_shape, r_shape)
