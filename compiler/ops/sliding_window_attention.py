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

    Work and memory grow with tokens x window. Not differentiable by itself: `_backward` has the formulas.
    """
    past_key, past_value, length = _state(key, value, past_key, past_value, past_length, window, sinks)
    if query.shape[2] == 0:
        precise = torch.promote_types(query.dtype, torch.float32)
        return query.clone(), query.new_zeros(query.shape[:3], dtype=precise), past_key, past_value
    keys, values, present_key, present_value = _laid_out(key, value, past_key, past_value, length, window, sinks)
    scores = _scores(query, keys, length, window, sinks, scale)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    output = _by_tokens((weights.flatten(3, 4) @ values).div_(total.flatten(3, 4)), query)
    sums = _by_tokens(total.log_().add_(top).flatten(3, 4), query).squeeze(-1)
    return output.to(query.dtype), sums, present_key, present_value


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


def check_window(query: Tensor, key: Tensor, value: Tensor, window: int, sinks: int) -> None:
    """Raises ValueError where queries cannot attend to these keys through a window."""
    if window < 1 or sinks < 0:
        raise ValueError(f"a window of {window} tokens and {sinks} sinks: at least 1 and 0 are possible")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads cannot share {key.shape[1]} key heads")
    if key.shape != value.shape or query.shape[2:] != key.shape[2:]:
        raise ValueError(f"query {query.shape}, key {key.shape} and value {value.shape} do not fit")


def check_past(*past: Tensor | None) -> None:
    """Raises ValueError where some of past_key, past_value and past_length are given and others are not."""
    if any(one is None for one in past) and not all(one is None for one in past):
        raise ValueError("past_key, past_value and past_length come together")


def _check(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor | None, past_value: Tensor | None,
    past_length: Tensor | None, window: int, sinks: int,
) -> None:  # fmt: skip
    check_window(query, key, value, window, sinks)
    check_past(past_key, past_value, past_length)
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


def _laid_out(
    key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, length: Tensor, window: int, sinks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values as the blocks see them, and the next state. Differentiable."""
    keys, values = (_blocks(past, new, length, window, sinks) for past, new in ((past_key, key), (past_value, value)))
    kept = _kept(length, key.shape[2], window, sinks)[:, None, :, None]
    present_key, present_value = (
        torch.cat([past, new], 2).gather(2, kept.expand(past.shape))
        for past, new in ((past_key, key), (past_value, value))
    )
    return keys, values, present_key, present_value


def _blocks(past: Tensor, new: Tensor, length: Tensor, window: int, sinks: int) -> Tensor:
    """What each block may see: the sinks, the window before it, the block, in float32 at least.

    past [batch, kv_heads, sinks + window, head_dim]; new [batch, kv_heads, tokens, head_dim]
    -> [batch, kv_heads, blocks, places, head_dim]
    """
    tokens = new.shape[2]
    earlier = torch.arange(-window, 0, device=new.device) + length[:, None]  # [batch, window]: positions
    slots = sinks + (earlier - sinks) % window  # of a position before the sinks' end any: it is masked
    before = past.gather(2, slots[:, None, :, None].expand(-1, past.shape[1], -1, past.shape[3]))
    kept = _kept(length, tokens, window, sinks)[:, None, :sinks, None]
    first = torch.cat([past, new[:, :, :sinks]], 2).gather(2, kept.expand(-1, past.shape[1], -1, past.shape[3]))
    if tokens <= window:
        moving = [before.unsqueeze(2), new.unsqueeze(2)]
    else:
        line = torch.unflatten(torch.cat([before, _filled(new, window)], 2), 2, (-1, window))
        moving = [line[:, :, :-1], line[:, :, 1:]]
    seen = torch.cat([first.unsqueeze(2).expand(-1, -1, moving[0].shape[2], -1, -1), *moving], 3)
    return seen.to(torch.promote_types(seen.dtype, torch.float32))


def _filled(x: Tensor, window: int) -> Tensor:
    """[batch, heads, tokens, n] with zeros at the end, so that blocks are full."""
    missing = -x.shape[2] % min(window, x.shape[2])
    return torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x


def _by_blocks(x: Tensor, kv_heads: int, window: int) -> Tensor:
    """[batch, heads, tokens, n] as [batch, kv_heads, blocks, repeats * block, n], in float32 at least."""
    block = min(window, x.shape[2])
    x = _filled(x.to(torch.promote_types(x.dtype, torch.float32)), window)
    x = torch.unflatten(torch.unflatten(x, 1, (kv_heads, -1)), 3, (-1, block))
    return x.transpose(2, 3).flatten(3, 4)


def _by_tokens(x: Tensor, query: Tensor) -> Tensor:
    """[batch, kv_heads, blocks, repeats * block, n] as [batch, heads, tokens, n]."""
    repeats = query.shape[1] // x.shape[1]
    x = torch.unflatten(x, 3, (repeats, -1)).transpose(2, 3)
    return x.flatten(1, 2).flatten(2, 3)[:, :, : query.shape[2]]


def _scores(query: Tensor, keys: Tensor, length: Tensor, window: int, sinks: int, scale: float) -> Tensor:
    """[batch, kv_heads, blocks, repeats, block, places]; -inf where a token does not see a place."""
    rows = _by_blocks(query, keys.shape[1], window)
    block = min(window, query.shape[2])
    scores = torch.unflatten(scale * rows @ keys.transpose(-1, -2), 3, (-1, block))
    seen = _seen(length, block * keys.shape[2], window, sinks, block)
    return scores.masked_fill_(~seen[:, None, :, None], -torch.inf)


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


def _save(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    ctx.save_for_backward(*inputs[:6], *output[:2])
    ctx.settings = inputs[6:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """With weights P = exp(scores - log_sum_exp) and gradients dO and dL of the output and of log_sum_exp,

    dV = P^T dO    dscores = P * (dO V^T - rowsum(dO * O) + dL)    dQ = scale dscores K    dK = scale dscores^T Q
    """
    query, key, value, past_key, past_value, past_length, output, sums = ctx.saved_tensors
    window, sinks, scale = ctx.settings
    has_past = past_key is not None
    past_key, past_value, length = _state(key, value, past_key, past_value, past_length, window, sinks)
    into_blocks: list[Tensor | None] = [None, None]
    into_query = None
    if query.shape[2] and (gradients[0] is not None or gradients[1] is not None):
        of_output = torch.zeros_like(output) if gradients[0] is None else gradients[0]
        keys, values, *_ = _laid_out(key, value, past_key, past_value, length, window, sinks)
        rows, into_rows, given, log_sums = (
            _by_blocks(one, keys.shape[1], window) for one in (query, of_output, output, sums.unsqueeze(-1))
        )
        scores = _scores(query, keys, length, window, sinks, scale).flatten(3, 4)
        weights = scores.sub_(log_sums).exp_()
        shared = (into_rows * given).sum(-1, keepdim=True)
        if gradients[1] is not None:
            shared = shared - _by_blocks(gradients[1].unsqueeze(-1), keys.shape[1], window)
        into_values = weights.transpose(-1, -2) @ into_rows
        into_scores = (into_rows @ values.transpose(-1, -2)).sub_(shared).mul_(weights).mul_(scale)
        into_query = _by_tokens(into_scores @ keys, query).to(query.dtype)
        into_blocks = [into_scores.transpose(-1, -2) @ rows, into_values]

    def laid_out(key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, ...]:
        return _laid_out(key, value, past_key, past_value, length, window, sinks)

    found = differentiated(laid_out, (key, value, past_key, past_value), [*into_blocks, *gradients[2:]])
    pasts = found[2:] if has_past else (None, None)
    return (into_query, *found[:2], *pasts, None, None, None, None)


sliding_window_attention.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.regraft.sliding_window_attention)  # type: ignore[untyped-decorator, unused-ignore]
def _flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], past_key: Any, past_value: Any, past_length: Any,
    window: int, sinks: int, *others: Any, **options: Any,
) -> int:  # fmt: skip
    """Scores and values of as many keys as there are slots, less where a sequence from its start has fewer tokens."""
    batch, heads, tokens, head_dim = query
    visible = sinks + window if past_key is not None else min(sinks + window, tokens)
    return 2 * 2 * batch * heads * tokens * visible * head_dim
