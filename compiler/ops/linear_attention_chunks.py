"""The recurrence of regraft::linear_attention by matrix products over chunks of tokens, with one decay a head.

Within a chunk that starts from state S, with the summed logarithms of decay G_i and what is written u_i:

    u_i = beta_i (v_i - exp(G_i) S^T k_i - sum over j < i of exp(G_i - G_j) (k_i . k_j) u_j)     (without beta: v_i)
    o_i = exp(G_i) S^T q_i + sum over j <= i of exp(G_i - G_j) (q_i . k_j) u_j
    S'  = exp(G_last) S + sum over j of exp(G_last - G_j) k_j u_j^T

The first line is a triangular system. No exponent above that of the decay itself is ever taken.
Source: Yang et al. 2024, arXiv:2412.06464, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64
FORGOTTEN = -1e3
"""The exponential of this decay is 0 in every dtype. Limited by it, differences of sums stay exact."""


def recurrence_by_chunks(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q [batch, q_heads, tokens, d_k], k and v [batch, kv_heads, tokens, ...], state [batch, kv_heads, d_k, d_v].

    decay and beta are [batch, kv_heads or 1, tokens, 1]. Returns the unscaled output and the last state.
    """
    repeats = q.shape[1] // k.shape[1]
    q = torch.unflatten(q, 1, (-1, repeats))  # [batch, kv_heads, repeats, tokens, d_k]
    outputs = []
    for start in range(0, q.shape[3], CHUNK):
        part = slice(start, start + CHUNK)
        g = None if decay is None else decay[:, :, part]
        b = None if beta is None else beta[:, :, part]
        output, state = _chunk(q[..., part, :], k[:, :, part], v[:, :, part], state, g, b)
        outputs.append(output)
    whole = torch.cat(outputs, dim=3) if outputs else q.new_zeros(*q.shape[:4], v.shape[-1])
    return whole.flatten(1, 2), state


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    tokens = k.shape[2]
    logarithms = k.new_zeros(1, 1, tokens, 1) if decay is None else decay
    summed = logarithms.double().clamp(min=FORGOTTEN).cumsum(2)  # [batch, heads, tokens, 1]
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=k.device).triu(1)
    last = summed[:, :, -1:]
    kept, left = summed.exp().to(k.dtype), (last - summed).exp().to(k.dtype)
    between = (summed - summed.transpose(2, 3)).masked_fill(later, -torch.inf).exp().to(k.dtype)
    written = v
    if beta is not None:
        system = (beta * between * (k @ k.transpose(2, 3))).tril(-1)  # [batch, heads, tokens, tokens]
        given = beta * (v - kept * (k @ state))
        written = torch.linalg.solve_triangular(system, given, upper=False, unitriangular=True)
    scores = between.unsqueeze(2) * (q @ k.transpose(2, 3).unsqueeze(2))  # [batch, heads, repeats, tokens, tokens]
    output = kept.unsqueeze(2) * (q @ state.unsqueeze(2)) + scores @ written.unsqueeze(2)
    return output, kept[:, :, -1:] * state + (left * k).transpose(2, 3) @ written
