"""regraft::linear_attention: attention as a recurrence over a state, with an optional decay and the delta rule.

    query [batch, tokens, q_num_heads * d_k]       key [batch, tokens, kv_num_heads * d_k]
    value [batch, tokens, kv_num_heads * d_v]      past_state [batch, kv_num_heads, d_k, d_v] or none (zeros)
    decay [batch, tokens, kv_num_heads] or [batch, tokens, kv_num_heads * d_k], a logarithm
    beta  [batch, tokens, kv_num_heads] or [batch, tokens, 1]
    ->    output [batch, tokens, q_num_heads * d_v], present_state [batch, kv_num_heads, d_k, d_v]

For each head, with state S [d_k, d_v] and token t, by `update_rule`:

    linear        S_t = S_{t-1} + k_t v_t^T
    gated         S_t = exp(g_t) S_{t-1} + k_t v_t^T
    delta         S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T
    gated_delta   S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - (exp(g_t) S_{t-1})^T k_t)^T

    o_t = scale * S_t^T q_t;   scale 0 stands for 1 / sqrt(d_k)

Query head h reads the state of head h // (q_num_heads / kv_num_heads). Sums are float32 at least; present_state has the
dtype of past_state, without one that of query.

Source: Katharopoulos et al. 2020, arXiv:2006.16236; Yang et al. 2023, arXiv:2312.06635 (gated); Yang et al. 2024,
arXiv:2406.06484 (delta), and arXiv:2412.06464, eq. 10 (gated delta). The words are those of ONNX LinearAttention,
opset 27.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from compiler.ops.linear_attention_chunks import recurrence_by_chunks

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? past_state, Tensor? decay, Tensor? beta, int q_num_heads, "
    "int kv_num_heads, str update_rule, float scale) -> (Tensor output, Tensor present_state)"
)
GATED, DELTA = ("gated", "gated_delta"), ("delta", "gated_delta")
UPDATE_RULES = ("linear", *GATED, "delta")


def linear_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
    update_rule: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The definition: token by token, in the papers' formulas. Differentiable."""
    q, k, v, state, g, b = _by_heads(query, key, value, past_state, decay, beta, q_num_heads, kv_num_heads)
    outputs = []
    for t in range(q.shape[2]):
        written = v[:, :, t]  # [batch, kv_heads, d_v]
        if g is not None:
            state = state * g[:, :, t].exp()[..., None]
        if b is not None:
            written = b[:, :, t] * (written - (state * k[:, :, t, :, None]).sum(-2))
        state = state + k[:, :, t, :, None] * written[..., None, :]
        shared = state.repeat_interleave(q_num_heads // kv_num_heads, dim=1)  # [batch, q_heads, d_k, d_v]
        outputs.append((shared * q[:, :, t, :, None]).sum(-2))
    output = torch.stack(outputs, 2) if outputs else q.new_zeros(*q.shape[:3], v.shape[-1])
    return _packed(output, state, query, past_state, scale)


def linear_attention_in_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
    update_rule: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The same numbers by matrix products over chunks of tokens."""
    q, k, v, state, g, b = _by_heads(query, key, value, past_state, decay, beta, q_num_heads, kv_num_heads)
    output, state = recurrence_by_chunks(q, k, v, state, g, b)
    return _packed(output, state, query, past_state, scale)


@torch.library.custom_op("regraft::linear_attention", mutates_args=(), schema=SCHEMA)
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
    update_rule: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Linear attention as the module's docstring defines it. Raises ValueError for inputs that do not fit."""
    _check(query, key, value, past_state, decay, beta, q_num_heads, kv_num_heads, update_rule)
    return linear_attention_in_chunks(
        query, key, value, past_state, decay, beta, q_num_heads, kv_num_heads, update_rule, scale
    )


@linear_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
    update_rule: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    _check(query, key, value, past_state, decay, beta, q_num_heads, kv_num_heads, update_rule)
    d_k, d_v = query.shape[-1] // q_num_heads, value.shape[-1] // kv_num_heads
    output = query.new_empty((*query.shape[:2], q_num_heads * d_v))
    like = query if past_state is None else past_state
    return output, like.new_empty((query.shape[0], kv_num_heads, d_k, d_v))


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
    update_rule: str,
) -> None:
    if update_rule not in UPDATE_RULES:
        raise ValueError(f"update_rule is {update_rule!r}; {', '.join(UPDATE_RULES)} are possible")
    if q_num_heads < 1 or kv_num_heads < 1 or q_num_heads % kv_num_heads:
        raise ValueError(f"{q_num_heads} query heads cannot share {kv_num_heads} key heads")
    for name, given, wanted in (("decay", decay, update_rule in GATED), ("beta", beta, update_rule in DELTA)):
        if (given is not None) != wanted:
            raise ValueError(f"update rule {update_rule!r} {'needs' if wanted else 'takes no'} {name}")
    d_k, d_v = query.shape[-1] // q_num_heads, value.shape[-1] // kv_num_heads
    if query.shape[-1] != q_num_heads * d_k or key.shape[-1] != kv_num_heads * d_k:
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} do not fit")
    if value.shape[-1] != kv_num_heads * d_v:
        raise ValueError(f"value {tuple(value.shape)} has no {kv_num_heads} heads")
    if decay is not None and decay.shape[-1] not in (kv_num_heads, kv_num_heads * d_k):
        raise ValueError(f"decay {tuple(decay.shape)} is neither per head nor per channel")
    if beta is not None and beta.shape[-1] not in (kv_num_heads, 1):
        raise ValueError(f"beta {tuple(beta.shape)} is not per head")
    if past_state is not None and past_state.shape[1:] != (kv_num_heads, d_k, d_v):
        raise ValueError(f"past_state {tuple(past_state.shape)} is not [batch, {kv_num_heads}, {d_k}, {d_v}]")


def _by_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    q_num_heads: int,
    kv_num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """All of it in float32 at least, as [batch, heads, tokens, ...]; decay and beta with a last dim that broadcasts."""
    precise = torch.promote_types(query.dtype, torch.float32)

    def heads(x: Tensor, count: int) -> Tensor:
        return torch.unflatten(x.to(precise), -1, (count, -1)).transpose(1, 2)

    q, k, v = heads(query, q_num_heads), heads(key, kv_num_heads), heads(value, kv_num_heads)
    if past_state is None:
        state = q.new_zeros(q.shape[0], kv_num_heads, q.shape[-1], v.shape[-1])
    else:
        state = past_state.to(precise)
    g = None if decay is None else heads(decay, kv_num_heads)
    b = None if beta is None else heads(beta, beta.shape[-1])
    return q, k, v, state, g, b


def _packed(
    output: Tensor, state: Tensor, query: Tensor, past_state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """output [batch, heads, tokens, d_v] scaled and as [batch, tokens, heads * d_v]; the state as its own tensor."""
    factor = scale or 1 / math.sqrt(state.shape[-2])
    present = state.to(query.dtype if past_state is None else past_state.dtype)
    packed = (output * factor).transpose(1, 2).flatten(2).to(query.dtype)
    return packed.contiguous(), present.clone(memory_format=torch.contiguous_format)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.settings = inputs[6:]


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """Runs the chunks again and differentiates them."""
    with torch.enable_grad():
        leaves: list[Any] = [None if one is None else one.detach().requires_grad_() for one in ctx.saved_tensors]
        outputs = linear_attention_in_chunks(*leaves, *ctx.settings)
        wanted = [one for one in leaves if one is not None]
        found = iter(torch.autograd.grad(outputs, wanted, gradients, allow_unused=True))
    return (*(None if one is None else next(found) for one in leaves), None, None, None, None)


linear_attention.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula(torch.ops.regraft.linear_attention)  # type: ignore[untyped-decorator, unused-ignore]
def _flops(
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    past_state: Any,
    decay: Any,
    beta: Any,
    q_num_heads: int,
    kv_num_heads: int,
    *others: Any,
    **options: Any,
) -> int:
    """Each token reads the state once a query head, and writes it (the delta rule: reads it before that) a key head."""
    batch, tokens, width = query
    entries = (width // q_num_heads) * (value[-1] // kv_num_heads)
    return 2 * batch * tokens * entries * (q_num_heads + kv_num_heads * (1 if beta is None else 2))
