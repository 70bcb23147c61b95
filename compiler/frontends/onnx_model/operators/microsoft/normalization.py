"""Normalizations of com.microsoft, with the sums before them; and RMS norm under its first name in ONNX Runtime."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator
from compiler.frontends.onnx_model.operators.microsoft import MICROSOFT
from compiler.ops.rms_norm import rms_norm

EPSILON = 1e-12


@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, node: NodeContext
) -> Tensor | tuple[Tensor, Tensor]:
    """RMS norm over all dims from `axis` on; the second output is 1 / root mean square."""
    dims = list(range(axis % x.dim(), x.dim()))
    y = rms_norm(x, scale, epsilon) if len(dims) == 1 else F.rms_norm(x, list(x.shape[dims[0] :]), scale, epsilon)
    if not node.has_output(1):
        return y
    return y, torch.rsqrt(x.float().pow(2).mean(dims, keepdim=True) + epsilon)


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None, *,
    epsilon: float = EPSILON, node: NodeContext,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    total = _sum(x, skip, bias)
    y = F.layer_norm(total, list(gamma.shape), gamma, beta, epsilon)
    mean = rate = None
    if node.has_output(1) or node.has_output(2):
        wide = total.float()
        mean = wide.mean(-1, keepdim=True)
        rate = torch.rsqrt(wide.var(-1, correction=0, keepdim=True) + epsilon)
    return (y, mean, rate, total)[: max(node.output_count, 1)]


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(
    x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None, *, epsilon: float = EPSILON, node: NodeContext
) -> tuple[Tensor | None, ...]:
    total = _sum(x, skip, bias)
    rate = None
    if node.has_output(2):
        rate = torch.rsqrt(total.float().pow(2).mean(-1, keepdim=True) + epsilon)
    return (rms_norm(total, gamma, epsilon), None, rate, total)[: max(node.output_count, 1)]


def _sum(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    total = x + skip
    return total if bias is None else total + bias


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    input_ids: Tensor, segment_ids: Tensor | None, word_embedding: Tensor, position_embedding: Tensor,
    segment_embedding: Tensor | None, gamma: Tensor, beta: Tensor, mask: Tensor | None = None,
    position_ids: Tensor | None = None, *, epsilon: float = EPSILON, mask_index_type: int = 0, node: NodeContext,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """input_ids [batch, tokens]. The second output counts the tokens of each sequence that the mask does not hide."""
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1]).unsqueeze(0)
    total = F.embedding(input_ids, word_embedding) + F.embedding(position_ids, position_embedding)
    if segment_ids is not None and segment_embedding is not None:
        total = total + F.embedding(segment_ids, segment_embedding)
    y = F.layer_norm(total, list(gamma.shape), gamma, beta, epsilon)
    counts = None
    if node.has_output(1):
        kept = torch.zeros_like(input_ids[:, :1]) if mask is None else (mask == 1).sum(1, keepdim=True)
        counts = kept.squeeze(1).to(torch.int32)
    return (y, counts, total)[: max(node.output_count, 1)]


@operator("GroupNorm", domain=MICROSOFT)
def group_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, *, activation: int, groups: int, channels_last: int = 1,
    epsilon: float = 1e-5,
) -> Tensor:  # fmt: skip
    """x [batch, channels, *spatial], or the channels last; `activation` 1 is SiLU."""
    first = x.movedim(-1, 1) if channels_last else x
    y = F.group_norm(first, groups, gamma.to(x.dtype), beta.to(x.dtype), epsilon)
    y = F.silu(y) if activation else y
    return y.movedim(1, -1) if channels_last else y


@operator("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, skip: Tensor, bias: Tensor | None = None, *, activation: int, groups: int,
    channels_last: int = 1, epsilon: float = 1e-5,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """skip and bias hold a number for each channel at least; the second output is their sum with x."""

    def spread(one: Tensor) -> Tensor:
        """[batch, channels] or [channels] against x."""
        if one.dim() == x.dim() or (channels_last and one.dim() == 1):
            return one
        places = (1,) * (x.dim() - 2)
        sizes = (*one.shape[:-1], *places, one.shape[-1]) if channels_last else (*one.shape, *places)
        return one.reshape(sizes)

    total = x + spread(skip)
    total = total if bias is None else total + spread(bias)
    y = group_norm(
        total, gamma, beta, activation=activation, groups=groups, channels_last=channels_last, epsilon=epsilon
    )
    return y, total
