"""LinearAttention, CausalConvWithState and the gates around them in com.microsoft, onto the dialect's operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import compiler.ops.causal_conv
import compiler.ops.linear_attention  # noqa: F401  (both define operators of the dialect)
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.operators.microsoft import MICROSOFT

WINDOW_HINT = "Export the model with one state: state_window 0."


@operator("LinearAttention", domain=MICROSOFT)
def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, past_state: Tensor | None = None, decay: Tensor | None = None,
    beta: Tensor | None = None, *, q_num_heads: int, kv_num_heads: int, chunk_size: int = 64, scale: float = 0.0,
    state_window: int = 0, update_rule: str = "gated_delta", node: NodeContext,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As in ONNX; and where there are fewer query heads than value heads, each serves several of those."""
    if state_window:
        raise node.refuse(f"it keeps the last {state_window} states", WINDOW_HINT)
    repeats = kv_num_heads // q_num_heads
    if repeats > 1:
        head_dim = query.shape[-1] // q_num_heads
        query = _repeated(query, q_num_heads, repeats)
        key = key if key.shape[-1] == kv_num_heads * head_dim else _repeated(key, q_num_heads, repeats)
        q_num_heads = kv_num_heads
    made: tuple[Tensor, Tensor] = torch.ops.regraft.linear_attention(
        query, key, value, past_state, decay, beta, q_num_heads, kv_num_heads, update_rule, scale
    )
    return made


def _repeated(x: Tensor, head_count: int, repeats: int) -> Tensor:
    """[batch, tokens, heads * dim] with each head `repeats` times."""
    return torch.unflatten(x, -1, (head_count, -1)).repeat_interleave(repeats, dim=2).flatten(2)


@operator("CausalConvWithState", domain=MICROSOFT)
def causal_conv_with_state(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, past_state: Tensor | None = None, *,
    activation: str = "none", channels_last: int = 0, dilation: int = 1, ndim: int = 1, state_window: int = 0,
    node: NodeContext,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x [batch, channels, tokens], or [batch, tokens, *channels] where `channels_last`."""
    if state_window:
        raise node.refuse(f"it keeps the last {state_window} states", WINDOW_HINT)
    if ndim != 1:
        raise node.refuse(f"it has {ndim} spatial dims", "Convolutions over one dim are read.")
    shape = x.shape[2:]
    if channels_last:
        x = x.flatten(2).transpose(1, 2)
        past_state = None if past_state is None else past_state.flatten(2).transpose(1, 2)
    if dilation == 1:
        y, state = torch.ops.regraft.causal_conv(x, weight, bias, past_state, activation)
    else:
        y, state = _dilated(x, weight, bias, past_state, activation, dilation)
    if channels_last:
        y, state = (torch.unflatten(one.transpose(1, 2), 2, list(shape)) for one in (y, state))
    return y, state


def _dilated(
    x: Tensor, weight: Tensor, bias: Tensor | None, past_state: Tensor | None, activation: str, dilation: int
) -> tuple[Tensor, Tensor]:
    carried = (weight.shape[-1] - 1) * dilation
    extended = F.pad(x, (carried, 0)) if past_state is None else torch.cat([past_state, x], dim=2)
    y = F.conv1d(extended, weight, bias, dilation=dilation, groups=weight.shape[0])
    return (y if activation == "none" else F.silu(y)), extended[..., extended.shape[2] - carried :]


@operator("LinearAttentionGate", domain=MICROSOFT)
def linear_attention_gate(
    a: Tensor, dt_bias: Tensor, decay_scale: Tensor, b: Tensor | None = None, *, node: NodeContext
) -> tuple[Tensor, ...]:
    """decay = decay_scale * softplus(a + dt_bias) in float32, and beta = sigmoid(b)."""
    decay = (decay_scale * F.softplus(a.float() + dt_bias)).to(a.dtype)
    if b is None or not node.has_output(1):
        return (decay,)
    return decay, torch.sigmoid(b.float()).to(a.dtype)


@operator("GatedRMSNorm", domain=MICROSOFT)
def gated_rms_norm(
    x: Tensor, scale: Tensor, gate: Tensor, *, activation: str = "silu", epsilon: float = 1e-5
) -> Tensor:
    """x and gate [..., groups * width] in float32; each group of `scale`'s width is normalized by itself."""
    groups = torch.unflatten(x.float(), -1, (-1, scale.shape[0]))
    normal = (groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + epsilon) * scale.float()).flatten(-2)
    wide = gate.float()
    return (normal * (torch.sigmoid(wide) if activation == "sigmoid" else F.silu(wide))).to(x.dtype)
