"""LinearAttention and CausalConvWithState: the operators of layers that carry a state from token to token."""

from __future__ import annotations

import torch
from torch import Tensor

import compiler.ops.causal_conv
import compiler.ops.linear_attention  # noqa: F401  (both define operators of the dialect)
from compiler.frontends.onnx_model.operator_table import operator


@operator("LinearAttention", since=27)
def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, past_state: Tensor | None = None, decay: Tensor | None = None,
    beta: Tensor | None = None, *, kv_num_heads: int, q_num_heads: int, chunk_size: int = 64, scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`chunk_size` is advice on how to compute it."""
    made: tuple[Tensor, Tensor] = torch.ops.regraft.linear_attention(
        query, key, value, past_state, decay, beta, q_num_heads, kv_num_heads, update_rule, scale
    )
    return made


@operator("CausalConvWithState", since=27)
def causal_conv_with_state(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, past_state: Tensor | None = None, *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    made: tuple[Tensor, Tensor] = torch.ops.regraft.causal_conv(x, weight, bias, past_state, activation)
    return made
