"""Evidence for language models: how well the next token is foretold, and how far its distribution has moved.

For token t of a text, with logits z_t [vocabulary] of the Program at hand and the next token x_(t+1):

    perplexity      exp(mean over t of -log q_t(x_(t+1))), q_t = softmax(z_t)
    kl_divergence   mean over t of sum over v of p_t(v) (log p_t(v) - log q_t(v)), p_t the captured model's; in nats
    top1_agreement  share of t where p_t and q_t are largest at the same token

Padding is left out: a token counts where its mask is one, as a thing to foretell too.

Logits of a whole data set are never held in memory: batches go through one at a time, a few rows at once. Of the
captured model, log p_t is kept in a temporary file that is gone when nothing refers to it: 16 bits each, in steps of
2^-10 down to -64 nats, 98 KB a token for a vocabulary of 49,152. That reads under 1e-7 nats of divergence into a
Program that did not change (float16 would read 1e-5), and under 2^-11 of `largest_error`; likelihoods of next tokens
and choices are kept as they were.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from compiler.evidence import Fidelity
from compiler.evidence.cosines import row_cosines

if TYPE_CHECKING:
    from compiler.program import Program

ROWS_AT_ONCE = 16
STEPS_A_NAT = 1024
LARGEST_CODE = 2**16 - 1
MOST_NATS = 700.0
LEAST_LOG_PROBABILITY = -1e4
"""Tokens that can never come, with a logit of minus infinity, count as this."""

TOKENS, MASK = "input_ids", "attention_mask"


def is_language_model(program: Program) -> bool:
    """Whether `program` gives logits [batch, tokens, vocabulary] for token ids [batch, tokens]."""
    reads_tokens = any(spec.name == TOKENS and len(spec.shape) == 2 for spec in program.inputs)
    return program.role == "causal-lm" and reads_tokens and vocabulary_size(program) is not None


def vocabulary_size(program: Program) -> int | None:
    """The number of logits of a token, where the Program gives any."""
    last = program.outputs[0].shape[-1:] if program.outputs and len(program.outputs[0].shape) == 3 else ()
    return last[0] if last and isinstance(last[0], int) else None


@dataclass(frozen=True)
class _Rows:
    """The tokens of one batch that are no padding, [rows], and what the captured model foretold after each.

    `places` are their positions in [batch * tokens]; `targets` the next tokens, of which `has_target` says where there
    is one; `first` is where their log-probabilities begin in the file.
    """

    places: Tensor
    targets: Tensor
    has_target: Tensor
    log_likelihoods: Tensor
    choices: Tensor
    log_normalizers: Tensor
    first: int


class Predictions:
    """What the captured model foretells on batches of text, to compare others with."""

    def __init__(self, program: Program, batches: Sequence[tuple[Tensor, ...]], outputs: Iterable[Tensor]) -> None:
        """`outputs` are the logits [batch, tokens, vocabulary] of `program` for each of `batches`, one at a time."""
        names = [spec.name for spec in program.inputs]
        self._file = tempfile.TemporaryFile(prefix="regraft-")  # noqa: SIM115  (closed with this object)
        weakref.finalize(self, self._file.close)
        self._vocabulary = 0
        self._written = 0
        self._batches: list[_Rows] = []
        for batch, logits in zip(batches, outputs, strict=True):
            mask = batch[names.index(MASK)] if MASK in names[: len(batch)] else None
            self._keep(batch[names.index(TOKENS)], mask, logits)

    @property
    def row_count(self) -> int:
        """Tokens that are compared."""
        return sum(len(rows.places) for rows in self._batches)

    def compare(self, outputs: Iterable[Tensor]) -> Fidelity:
        """The fidelity of other logits for the same batches; each is let go before the next is asked for."""
        total = _Sums()
        for rows, logits in zip(self._batches, outputs, strict=True):
            self._compare_rows(rows, logits.flatten(0, 1), total)
        return total.fidelity()

    def _keep(self, tokens: Tensor, mask: Tensor | None, logits: Tensor) -> None:
        counts = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        targets, has_target = tokens.roll(-1, 1), counts & counts.roll(-1, 1)
        has_target[:, -1] = False
        places = counts.flatten().nonzero().flatten()
        flat = logits.flatten(0, 1)
        self._vocabulary = flat.shape[1]
        kept = [self._keep_rows(flat[some], targets.flatten()[some]) for some in torch.split(places, ROWS_AT_ONCE)]
        likelihoods, choices, normalizers = (torch.cat(parts) for parts in zip(*kept, strict=True))
        rows = _Rows(
            places=places,
            targets=targets.flatten()[places],
            has_target=has_target.flatten()[places],
            log_likelihoods=likelihoods,
            choices=choices,
            log_normalizers=normalizers,
            first=self._written,
        )
        self._batches.append(rows)
        self._written += len(places)

    def _keep_rows(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = logits.float()
        log_normalizers = logits.logsumexp(-1, keepdim=True)
        log_p = logits - log_normalizers  # [rows, vocabulary]
        codes = log_p.mul(-STEPS_A_NAT).round_().clamp_(0, LARGEST_CODE)
        self._file.write(codes.numpy().astype(np.uint16).tobytes())
        return log_likelihoods(logits, targets), logits.argmax(-1), log_normalizers

    def _read(self, first: int, count: int) -> Tensor:
        """Log-probabilities of `count` rows from row `first` on, [count, vocabulary]."""
        row_bytes = self._vocabulary * np.dtype(np.uint16).itemsize
        self._file.seek(first * row_bytes)
        codes = np.frombuffer(self._file.read(count * row_bytes), dtype=np.uint16)
        return torch.from_numpy(codes.astype(np.float32)).div_(-STEPS_A_NAT).view(count, self._vocabulary)

    def _compare_rows(self, rows: _Rows, logits: Tensor, total: _Sums) -> None:
        for start in range(0, len(rows.places), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            found = logits[rows.places[some]].float()
            log_p = self._read(rows.first + start, len(found))
            reference = log_p + rows.log_normalizers[some]
            has_target = rows.has_target[some]
            total.target_count += int(has_target.sum())
            total.now += float(log_likelihoods(found, rows.targets[some])[has_target].sum())
            total.before += float(rows.log_likelihoods[some][has_target].sum())
            total.agreed += int((found.argmax(-1) == rows.choices[some]).sum())
            total.divergence += float(divergences(log_p.log_softmax(-1), found.log_softmax(-1)).sum())
            total.add_cosines(row_cosines(found, reference, torch.float32))
            total.largest_error = max(total.largest_error, float((found - reference).abs().max()))


def log_likelihoods(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target] of each row [rows], in float64."""
    return logits.gather(1, targets[:, None]).flatten().double() - logits.logsumexp(-1).double()


def divergences(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row [rows], in nats, from log-probabilities [rows, vocabulary]; infinite where q is broken."""
    log_p, log_q = log_p.clamp(min=LEAST_LOG_PROBABILITY), log_q.clamp(min=LEAST_LOG_PROBABILITY)
    found = (log_p.exp() * (log_p - log_q)).sum(-1).double()
    return torch.where(found.isnan(), math.inf, found)


@dataclass
class _Sums:
    """What has been compared so far: plain numbers, since small tensors among large ones fragment memory."""

    row_count: int = 0
    target_count: int = 0
    now: float = 0.0
    before: float = 0.0
    agreed: int = 0
    divergence: float = 0.0
    cosine: float = 0.0
    worst_cosine: float = 1.0
    largest_error: float = 0.0

    def add_cosines(self, cosines: Tensor) -> None:
        """One a row."""
        self.row_count += len(cosines)
        self.cosine += float(cosines.sum())
        self.worst_cosine = min(self.worst_cosine, float(cosines.min()))

    def fidelity(self) -> Fidelity:
        """All of it as means."""
        rows = max(self.row_count, 1)
        now, before = (perplexity(total, self.target_count) for total in (self.now, self.before))
        return Fidelity(
            mean_cosine=self.cosine / rows,
            worst_cosine=self.worst_cosine,
            largest_error=self.largest_error,
            row_count=self.row_count,
            top1_agreement=self.agreed / rows,
            perplexity=now,
            perplexity_ratio=None if now is None or before is None else now / before,
            kl_divergence=max(0.0, self.divergence / rows),
        )


def perplexity(log_likelihood: float, token_count: int) -> float | None:
    """exp(-log_likelihood / token_count), of a sum in nats; None without tokens, infinite where one is broken."""
    if not token_count:
        return None
    mean = -log_likelihood / token_count
    return math.exp(mean) if mean < MOST_NATS else math.inf
