"""The recurrence of regraft::linear_attention by matrix products over chunks of tokens.

Within a chunk that starts from state S, with the summed logarithms of decay G_i (one number, or one a channel) and what
is written u_i:

    u_i = beta_i (v_i - S^T (exp(G_i) k_i) - sum over j < i of (k_i . (exp(G_i - G_j) k_j)) u_j)     (without beta: v_i)
    o_i = S^T (exp(G_i) q_i) + sum over j <= i of (q_i . (exp(G_i - G_j) k_j)) u_j
    S'  = exp(G_last) S + sum over j of (exp(G_last - G_j) k_j) u_j^T

The first line is a triangular system, solved for all chunks at once as u = U - W S, so that only the last line goes
from chunk to chunk. No exponent above that of the decay itself is ever taken: with a decay for each channel, products
hold the differences of every two tokens, hence shorter chunks.
Source: Yang et al. 2024, arXiv:2412.06464, section 3.3; Kimi Team 2025, arXiv:2510.26692, section 3.1 (a decay for each
channel).
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64
CHANNELS_CHUNK = 16
"""With a decay for each channel, where memory grows with tokens x this x d_k."""
FORGOTTEN = -1e3
"""The exponential of this decay is 0 in every dtype. Limited by it, differences of sums stay exact."""


def recurrence_by_chunks(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q [batch, q_heads, tokens, d_k], k and v [batch, kv_heads, tokens, ...], state [batch, kv_heads, d_k, d_v].

    decay and beta are [batch, kv_heads or 1, tokens, 1], or decay [batch, kv_heads, tokens, d_k]. Returns the unscaled
    output and the last state.
    """
    tokens = q.shape[2]
    if tokens == 0:
        return q.new_zeros(*q.shape[:3], v.shape[-1]), state
    by_channel = decay is not None and decay.shape[-1] > 1
    chunk = min(tokens, CHANNELS_CHUNK if by_channel else CHUNK)
    decay = k.new_zeros(1, 1, tokens, 1) if decay is None else decay
    q, k, v, decay = (_chunks(one, chunk) for one in (q, k, v, decay))  # [batch, heads, chunks, chunk, ...]
    q = torch.unflatten(q, 1, (k.shape[1], -1)).transpose(2, 3)  # [batch, kv_heads, chunks, repeats, chunk, d_k]
    summed = decay.double().clamp(min=FORGOTTEN).cumsum(3)
    kept, left = summed.exp().to(k.dtype), (summed[:, :, :, -1:] - summed).exp().to(k.dtype)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)
    differences = (summed.unsqueeze(4) - summed.unsqueeze(3)).to(k.dtype)
    between = differences.masked_fill(later[..., None], -torch.inf).exp()  # [batch, heads, chunks, chunk, chunk, ...]
    written, reading = v, None
    if beta is not None:
        beta = _chunks(beta, chunk)
        system = (beta * _products(k.unsqueeze(3), k, between).squeeze(3)).tril(-1)
        given = beta * torch.cat([v, kept * k], -1)
        solved = torch.linalg.solve_triangular(system, given, upper=False, unitriangular=True)
        written, reading = solved.split([v.shape[-1], k.shape[-1]], -1)
    starts, writes = [], []
    last, added = kept[:, :, :, -1:].transpose(3, 4), (left * k).transpose(3, 4)
    for index in range(k.shape[2]):
        starts.append(state)
        write = written[:, :, index] if reading is None else written[:, :, index] - reading[:, :, index] @ state
        writes.append(write)
        state = last[:, :, index] * state + added[:, :, index] @ write
    before, written = (torch.stack(one, 2) for one in (starts, writes))
    scores = _products(q, k, between).flatten(3, 4)  # [batch, kv_heads, chunks, repeats * chunk, chunk]
    output = (kept.unsqueeze(3) * q).flatten(3, 4) @ before + scores @ written
    output = torch.unflatten(output, 3, (-1, chunk)).transpose(2, 3)
    return output.flatten(1, 2).flatten(2, 3)[:, :, :tokens], state


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """[batch, heads, tokens, n] as [batch, heads, chunks, chunk, n]; zeros at the end, which leave the state alone."""
    missing = -x.shape[2] % chunk
    filled = torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x
    return torch.unflatten(filled, 2, (-1, chunk))


def _products(rows: Tensor, keys: Tensor, between: Tensor) -> Tensor:
    """row_i . (between_ij key_j) [batch, heads, chunks, repeats, chunk, chunk].

    rows [batch, heads, chunks, repeats, chunk, d_k], keys without repeats; between [..., chunk, chunk, 1 or d_k].
    """
    if between.shape[-1] == 1:
        products = rows.flatten(3, 4) @ keys.transpose(-1, -2)
        return between.squeeze(-1).unsqueeze(3) * torch.unflatten(products, 3, (-1, rows.shape[4]))
    weighted = between * keys.unsqueeze(3)  # [batch, heads, chunks, chunk, chunk, d_k]
    return (weighted @ rows.movedim(3, -1)).movedim(-1, 3)
