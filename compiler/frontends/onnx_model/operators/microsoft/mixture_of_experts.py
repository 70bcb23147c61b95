"""MoE of com.microsoft: each token through the feed-forward networks that a router chooses for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.operators.microsoft import MICROSOFT

INTERLEAVED = 1
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "identity": lambda x: x,
}


@operator("MoE", domain=MICROSOFT)
def mixture_of_experts(
    x: Tensor, router_probs: Tensor, fc1_experts_weights: Tensor, fc1_experts_bias: Tensor | None,
    fc2_experts_weights: Tensor, fc2_experts_bias: Tensor | None = None, fc3_experts_weights: Tensor | None = None,
    fc3_experts_bias: Tensor | None = None, *, activation_type: str = "relu", activation_alpha: float = 1.0,
    activation_beta: float = 0.0, k: int = 1, normalize_routing_weights: int = 0, swiglu_fusion: int = 0,
    swiglu_limit: float = math.inf, use_sparse_mixer: int = 0, node: NodeContext,
) -> Tensor:  # fmt: skip
    """x [..., hidden], router_probs [tokens, experts] before their softmax, weights [experts, out, in].

    Every expert sees every token, so that all sizes are known; those not chosen are weighted by 0.
    """
    if use_sparse_mixer or fc3_experts_weights is not None:
        raise node.refuse("it has a sparse mixer or a third product", "Experts of two products are read.")
    tokens = x.reshape(-1, x.shape[-1])
    inner = tokens @ fc1_experts_weights.transpose(1, 2)  # [experts, tokens, inner]
    if fc1_experts_bias is not None:
        inner = inner + fc1_experts_bias.unsqueeze(1)
    if activation_type == "swiglu":
        if swiglu_fusion != INTERLEAVED:
            raise node.refuse(f"its swiglu_fusion is {swiglu_fusion}", "Gates that alternate with values are read: 1.")
        gate, value = inner[..., 0::2].clamp(max=swiglu_limit), inner[..., 1::2].clamp(-swiglu_limit, swiglu_limit)
        inner = gate * torch.sigmoid(activation_alpha * gate) * (value + activation_beta)
    elif activation_type in ACTIVATIONS:
        inner = ACTIVATIONS[activation_type](inner)
    else:
        raise node.refuse(f"its activation is {activation_type}", f"{', '.join(ACTIVATIONS)} and swiglu are read.")
    each = inner @ fc2_experts_weights.transpose(1, 2)  # [experts, tokens, hidden]
    if fc2_experts_bias is not None:
        each = each + fc2_experts_bias.unsqueeze(1)
    shares = _shares(router_probs, k, bool(normalize_routing_weights)).to(each.dtype)
    return (each * shares.t().unsqueeze(-1)).sum(0).reshape(x.shape)


def _shares(logits: Tensor, count: int, normalize: bool) -> Tensor:
    """[tokens, experts]: the softmax of the `count` likeliest experts of each token, 0 for the others."""
    chosen = torch.softmax(logits.float(), dim=-1)
    values, experts = chosen.topk(count, dim=-1)
    if normalize:
        values = values / values.sum(-1, keepdim=True)
    return torch.zeros_like(chosen).scatter(-1, experts, values)
