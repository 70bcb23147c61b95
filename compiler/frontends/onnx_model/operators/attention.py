"""ONNX Attention, and the pieces that every fused attention of other domains is put together from.

One call of aten's scaled_dot_product_attention or regraft::attention stands for each node, so that attention sites
match. Masks are arithmetic on positions, from which sites read what they allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

import compiler.ops.attention  # noqa: F401  (defines regraft::attention)
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator

RAW, SOFTCAPPED, BIASED, WEIGHTS = range(4)
"""What `qk_matmul_output_mode` asks for."""


@operator("Attention", since=23)
def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, past_key: Tensor | None = None,
    past_value: Tensor | None = None, nonpad_kv_seqlen: Tensor | None = None, *, is_causal: int = 0,
    kv_num_heads: int = 0, q_num_heads: int = 0, qk_matmul_output_mode: int = RAW, scale: float | None = None,
    softcap: float = 0.0, softmax_precision: int = 0, left_window_size: int = -1, right_window_size: int = -1,
    node: NodeContext,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Of `softmax_precision` nothing is lost: scores are float32 at least."""
    packed = q.dim() == 3
    if packed:
        if not q_num_heads or not kv_num_heads:
            raise node.refuse("three-dimensional inputs need q_num_heads and kv_num_heads", "The file is damaged.")
        q, k, v = split_heads(q, q_num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    if (past_key is None) != (past_value is None):
        raise node.refuse("past_key and past_value come together or not at all", "The file is damaged.")
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    tokens, keys = q.shape[2], k.shape[2]
    allowed, added = [], None
    if attn_mask is not None:
        padded = _padded_mask(attn_mask, keys)
        if padded.dtype == torch.bool:
            allowed.append(padded)
        else:
            added = padded.to(q.dtype)
    offset = _offset(tokens, past_key, nonpad_kv_seqlen)
    from_start = isinstance(offset, int) and offset == 0
    if is_causal and not from_start and right_window_size != 0:
        right_window_size = 0
    allowed += band(tokens, keys, offset, left_window_size, right_window_size)
    if nonpad_kv_seqlen is not None:
        allowed.append(torch.arange(keys, device=q.device) < nonpad_kv_seqlen.reshape(-1, 1, 1, 1))
    mask = joined_mask(allowed, added)
    causal = bool(is_causal) and from_start
    same = v if v.dtype == q.dtype else v.to(q.dtype)
    y = attended(q, k, same, mask, causal, scale, softcap)
    results = [merge_heads(y) if packed else y, k, v]
    if node.has_output(3):
        results.append(score_output(q, k, mask, causal, scale, softcap, qk_matmul_output_mode))
    return tuple(results[: max(node.output_count, 1)])


def attended(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, softcap: float
) -> Tensor:
    """query [batch, heads, tokens, head_dim], key, value [batch, kv_heads, keys, ...] -> [batch, heads, tokens, ...].

    aten's own operator where it can say everything, otherwise regraft::attention.
    """
    if mask is not None and mask.dim() < 2:
        mask = mask.unsqueeze(0)
    if softcap or (is_causal and mask is not None) or query.shape[1] != key.shape[1]:
        chosen = scale_of(query, scale)
        made: Tensor = torch.ops.regraft.attention(query, key, value, mask, is_causal, chosen, softcap)
        return made
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal, scale=scale)


def scale_of(query: Tensor, scale: float | None) -> float:
    """The given scale, or 1 / sqrt(head_dim)."""
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


def split_heads(x: Tensor, head_count: int) -> Tensor:
    """[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]."""
    return torch.unflatten(x, -1, (head_count, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[batch, heads, tokens, head_dim] -> [batch, tokens, heads * head_dim]."""
    return x.transpose(1, 2).flatten(2)


def band(tokens: int, keys: int, offset: int | Tensor, left: int, right: int) -> list[Tensor]:
    """Boolean masks [..., tokens, keys]: token i sits at position p = i + offset, and p - left <= key <= p + right.

    A limit of -1 is none. `offset` may differ within the batch: a tensor [batch, 1, 1, 1].
    """
    masks: list[Tensor] = []
    sees_all = left < 0 and (right < 0 or (right == 0 and _is_last(tokens, keys, offset)))
    if sees_all:
        return masks
    key_positions = torch.arange(keys)
    positions = torch.arange(tokens).unsqueeze(-1) + offset
    if right >= 0:
        masks.append(key_positions <= (positions + right if right else positions))
    if left >= 0:
        masks.append(key_positions >= positions - left)
    return masks


def _is_last(tokens: int, keys: int, offset: int | Tensor) -> bool:
    """Whether there is one token, which sits at the last key."""
    alone = isinstance(tokens, int) and tokens == 1 and not isinstance(offset, Tensor)
    return alone and bool(statically_known_true(keys == offset + 1))


def joined_mask(allowed: Sequence[Tensor], added: Tensor | None) -> Tensor | None:
    """One mask of boolean ones and one that is added, or none."""
    selecting: Tensor | None = None
    for one in allowed:
        selecting = one if selecting is None else selecting & one
    if selecting is None or added is None:
        return added if selecting is None else selecting
    return torch.where(selecting, added, -torch.inf)


def score_output(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None, softcap: float, stage: int
) -> Tensor:
    """The scores [batch, heads, tokens, keys] at one of the stages RAW, SOFTCAPPED, BIASED and WEIGHTS."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key = key.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(-2, -1) * scale_of(query, scale)
    if softcap and stage > RAW:
        scores = softcap * torch.tanh(scores / softcap)
    if stage < BIASED:
        return scores
    selecting = [] if mask is None or mask.dtype != torch.bool else [mask]
    if is_causal:
        selecting += band(scores.shape[-2], scores.shape[-1], 0, -1, 0)
    bias = joined_mask(selecting, mask if mask is not None and mask.dtype != torch.bool else None)
    if bias is not None:
        scores = torch.where(bias, scores, -torch.inf) if bias.dtype == torch.bool else scores + bias
    if stage < WEIGHTS:
        return scores
    blind = (scores == -torch.inf).all(dim=-1, keepdim=True)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores.masked_fill(blind, 0.0).to(wide), dim=-1).masked_fill(blind, 0.0)
    return weights.to(scores.dtype)


def _offset(tokens: int, past_key: Tensor | None, nonpad_kv_seqlen: Tensor | None) -> int | Tensor:
    """The position of the first token: behind the past, or so that the last one is the last key that is no padding."""
    if past_key is not None:
        return past_key.shape[2]
    return 0 if nonpad_kv_seqlen is None else nonpad_kv_seqlen.reshape(-1, 1, 1, 1) - tokens


def _padded_mask(mask: Tensor, keys: int) -> Tensor:
    """The mask with keys that it says nothing of forbidden."""
    missing = keys - mask.shape[-1]
    if statically_known_true(missing == 0):
        return mask
    if mask.dtype == torch.bool:
        return torch.nn.functional.pad(mask, (0, missing), value=False)
    return torch.nn.functional.pad(mask, (0, missing), value=-math.inf)
