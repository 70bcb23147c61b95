"""regraft::sliding_window_attention: causal attention to the last tokens and the first, by a state of fixed size.

    query [batch, heads, tokens, head_dim]; key, value [batch, kv_heads, tokens, head_dim], keys rotated already
    past_key, past_value [batch, kv_heads, sinks + window, head_dim], past_length int64 [batch]: all three, or none for
    sequences from their start
    ->  output [batch, heads, tokens, head_dim], log_sum_exp [batch, heads, tokens], present_key, present_value

The token at position p (past_length and the new tokens before it) sees the positions

    V(p) = {j <= p: j < sinks or j > p - window}

    scores_j = scale * query_p . key_j;   output_p = sum over V(p) of softmax(scores)_j value_j
    log_sum_exp_p = log(sum over V(p) of exp(scores_j))

The state holds position j in slot j where j < sinks, otherwise in slot sinks + (j - sinks) mod window, so that a token
takes the place of the one that leaves the window. What slots hold that no position has reached is never read. Head h
reads key and value head h // (heads / kv_heads). log_sum_exp is float32 at least; so are all sums.

Source: Xiao et al. 2023, arXiv:2309.17453, section 3.2 (sinks); Beltagy et al. 2020, arXiv:2004.05150, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from compiler.ops.recurrence import differentiated

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? past_key, Tensor? past_value, Tensor? past_length, "
    "int window, int sinks, float scale) "
    "-> (Tensor output, Tensor log_sum_exp, Tensor present_key, Tensor present_value)"
)
Results = tuple[Tensor, Tensor, Tensor, Tensor]


def sliding_window_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, window: int, sinks: int, scale: float,
) -> Results:  # fmt: skip
    """The definition, token by token. Differentiable."""
    precise = torch.promote_types(query.dtype, torch.float32)
    held_keys, held_values, length = _state(key, value, past_key, past_value, past_length, window, sinks)
    repeats = query.shape[1] // key.shape[1]
    slots = torch.arange(sinks + window, device=key.device)
    outputs, sums = [], []
    for t in range(query.shape[2]):
        position = length + t  # [batch]
        slot = torch.where(position < sinks, position, sinks + (position - sinks) % window)
        written = (slots == slot[:, None])[:, None, :, None]
        held_keys = torch.where(written, key[:, :, t : t + 1], held_keys)
        held_values = torch.where(written, value[:, :, t : t + 1], held_values)
        keys = held_keys.to(precise).repeat_interleave(repeats, 1)
        scores = scale * (keys @ query[:, :, t, :, None].to(precise)).squeeze(-1)  # [batch, heads, slots]
        reached = slots <= position[:, None]
        scores = scores.masked_fill(~reached[:, None], -torch.inf)
        values = held_values.to(precise).repeat_interleave(repeats, 1)
        outputs.append((scores.softmax(-1)[:, :, None] @ values).squeeze(2))
        sums.append(scores.logsumexp(-1))
    if not outputs:
        return query.new_zeros(query.shape), query.new_zeros(query.shape[:3], dtype=precise), held_keys, held_values
    return torch.stack(outputs, 2).to(query.dtype), torch.stack(sums, 2), held_keys, held_values


def sliding_window_attention_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, window: int, sinks: int, scale: float,
) -> Results:  # fmt: skip
    """The same numbers from blocks of at most `window` tokens, each against the sinks, the window before it and itself.

    Work and memory grow with tokens x window.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    tokens = query.shape[2]
    past_key, past_value, length = _state(key, value, past_key, past_value, past_length, window, sinks)
    if tokens == 0:
        return query.clone(), query.new_zeros(query.shape[:3], dtype=precise), past_key, past_value
    block = min(window, tokens)
    missing = -tokens % block
    earlier = torch.arange(-window, 0, device=query.device) + length[:, None]  # [batch, window]: positions
    keys, values = (
        _blocks(past, new, earlier, length, window, sinks, block).to(precise)
        for past, new in ((past_key, key), (past_value, value))
    )  # [batch, kv_heads, blocks, sinks + window + block, head_dim]
    q = torch.nn.functional.pad(query.to(precise), (0, 0, 0, missing))
    q = torch.unflatten(torch.unflatten(q, 1, (key.shape[1], -1)), 3, (-1, block))
    scores = scale * (q @ keys.unsqueeze(2).transpose(-1, -2))  # [batch, kv_heads, repeats, blocks, block, keys]
    seen = _seen(length, tokens + missing, window, sinks, block)
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    sums = scores.logsumexp(-1, keepdim=True)
    output = (scores - sums).exp() @ values.unsqueeze(2)
    output, sums = (one.flatten(1, 2).flatten(2, 3)[:, :, :tokens] for one in (output, sums))
    kept = _kept(length, tokens, window, sinks)
    present_key, present_value = (
        torch.cat([past, new], 2).gather(2, kept[:, None, :, None].expand(past.shape))
        for past, new in ((past_key, key), (past_value, value))
    )
    return output.to(query.dtype), sums.squeeze(-1), present_key, present_value


@torch.library.custom_op("regraft::sliding_window_attention", mutates_args=(), schema=SCHEMA)
def sliding_window_attention(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, window: int, sinks: int, scale: float,
) -> Results:  # fmt: skip
    """Attention as the module's docstring defines it. Raises ValueError for inputs that do not fit."""
    _check(query, key, value, past_key, past_value, past_length, window, sinks)
    found = sliding_window_attention_in_blocks(
        query, key, value, past_key, past_value, past_length, window, sinks, scale
    )
    output, sums, present_key, present_value = (one.clone(memory_format=torch.contiguous_format) for one in found)
    return output, sums, present_key, present_value


@sliding_window_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, window: int, sinks: int, scale: float,
) -> Results:  # fmt: skip
    _check(query, key, value, past_key, past_value, past_length, window, sinks)
    precise = torch.promote_types(query.dtype, torch.float32)
    held = (*key.shape[:2], sinks + window, key.shape[3])
    return (
        query.new_empty(query.shape),
        query.new_empty(query.shape[:3], dtype=precise),
        key.new_empty(held),
        value.new_empty(held),
    )


def _check(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, window: int, sinks: int,
) -> None:  # fmt: skip
    if window < 1 or sinks < 0:
        raise ValueError(f"a window of {window} tokens and {sinks} sinks: at least 1 and 0 are possible")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads cannot share {key.shape[1]} key heads")
    if key.shape != value.shape or query.shape[2:] != key.shape[2:]:
        raise ValueError(f"query {query.shape}, key {key.shape} and value {value.shape} do not fit")
    past = (past_key, past_value, past_length)
    if any(one is None for one in past) and not all(one is None for one in past):
        raise ValueError("past_key, past_value and past_length come together")
    for name, one in (("past_key", past_key), ("past_value", past_value)):
        wanted = (key.shape[1], sinks + window, key.shape[3])
        if one is not None and one.shape[1:] != wanted:
            raise ValueError(f"{name} {tuple(one.shape)} is not [batch, {', '.join(map(str, wanted))}]")


def _state(
    key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None, past_length: Tensor | None,
    window: int, sinks: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The state and its lengths; empty where none is given."""
    if past_key is None or past_value is None or past_length is None:
        held = (*key.shape[:2], sinks + window, key.shape[3])
        return key.new_zeros(held), value.new_zeros(held), torch.zeros(len(key), dtype=torch.int64, device=key.device)
    return past_key, past_value, past_length


def _blocks(past: Tensor, new: Tensor, earlier: Tensor, length: Tensor, window: int, sinks: int, block: int) -> Tensor:
    """What each block may see: the sinks, the window before it, the block. [batch, kv_heads, blocks, places, head_dim].

    past [batch, kv_heads, sinks + window, head_dim]; new [batch, kv_heads, tokens, head_dim].
    """
    slots = sinks + (earlier - sinks) % window  # of a position before the sinks' end any: it is masked
    before = past.gather(2, slots[:, None, :, None].expand(-1, past.shape[1], -1, past.shape[3]))
    filled = torch.nn.functional.pad(new, (0, 0, 0, -new.shape[2] % block))
    line = torch.cat([before, filled], 2)  # [batch, kv_heads, window + blocks * block, head_dim]
    moving = line.unfold(2, window + block, block).transpose(-1, -2)
    kept = _kept(length, new.shape[2], window, sinks)[:, None, :sinks, None]
    first = torch.cat([past, new[:, :, :sinks]], 2).gather(2, kept.expand(-1, past.shape[1], -1, past.shape[3]))
    return torch.cat([first.unsqueeze(2).expand(-1, -1, moving.shape[2], -1, -1), moving], 3)


def _seen(length: Tensor, tokens: int, window: int, sinks: int, block: int) -> Tensor:
    """bool [batch, blocks, block, sinks + window + block]: which places of its block a token sees."""
    first = length[:, None] + torch.arange(0, tokens, block, device=length.device)  # [batch, blocks]
    own = first[..., None, None] + torch.arange(block, device=length.device)[:, None]  # [batch, blocks, block, 1]
    others = first[..., None, None] + torch.arange(-window, block, device=length.device)
    moving = (others <= own) & (others > own - window) & (others >= sinks)
    return torch.cat([torch.arange(sinks, device=length.device) <= own, moving], -1)


def _kept(length: Tensor, tokens: int, window: int, sinks: int) -> Tensor:
    """int64 [batch, sinks + window]: where among the old slots and then the new tokens each next slot comes from."""
    slots = torch.arange(sinks + window, device=length.device)
    start = length[:, None]
    last = start + tokens - 1
    latest = torch.where(slots < sinks, slots, last - (last - slots) % window)  # the last position of each slot
    is_new = (latest >= start) & (latest <= last) & ((latest >= sinks) | (slots < sinks))
    return torch.where(is_new, sinks + window + latest - start, slots)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.settings = inputs[6:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Runs the blocks again and differentiates them."""
    return differentiated(sliding_window_attention_in_blocks, (*ctx.saved_tensors, *ctx.settings), gradients)


sliding_window_attention.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula(torch.ops.regraft.sliding_window_attention)  # type: ignore[untyped-decorator, unused-ignore]
def _flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], past_key: Any, past_value: Any, past_length: Any,
    window: int, sinks: int, *others: Any, **options: Any,
) -> int:  # fmt: skip
    """Scores and values of as many keys as there are slots, less where a sequence from its start has fewer tokens."""
    batch, heads, tokens, head_dim = query
    visible = sinks + window if past_key is not None else min(sinks + window, tokens)
    return 2 * 2 * batch * heads * tokens * visible * head_dim
