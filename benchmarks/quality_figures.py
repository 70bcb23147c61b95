"""How far the logits of several sides are from one model's, window by window, without keeping any."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compiler.evidence.probes.recall import REACH, Recall, RecallProbe

if TYPE_CHECKING:
    from compiler.program import Program

ROWS_AT_ONCE = 64
FIRST_SEED = 1000
"""Of those that no compile uses."""

Logits = Callable[[np.ndarray], Tensor]
"""From token ids [tokens] to logits [tokens, vocabulary]."""


@dataclass
class SideFigures:
    """Sums over tokens: of -log q(next token), of KL(original || side) and of equal choices; and seconds of running."""

    losses: list[float] = field(default_factory=list)
    divergence: float = 0.0
    agreed: int = 0
    token_count: int = 0
    seconds: float = 0.0

    def summary(self, original: SideFigures) -> dict[str, float]:
        """Perplexity, its ratio with a standard error over windows, divergence in nats, agreement, tokens a second."""
        differences = np.subtract(self.losses, original.losses)
        ratio = math.exp(differences.mean())
        error = ratio * differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
        return {
            "perplexity": math.exp(np.mean(self.losses)),
            "perplexity_ratio": ratio,
            "ratio_standard_error": error,
            "kl_divergence": max(0.0, self.divergence / self.token_count),
            "top1_agreement": self.agreed / self.token_count,
            "tokens_per_second": self.token_count / max(self.seconds, 1e-9),
        }


def add_window(figures: Mapping[str, SideFigures], sides: Mapping[str, Logits], tokens: np.ndarray) -> None:
    """Run all sides on one window of `tokens`; the first side is the original."""
    targets = torch.from_numpy(tokens[1:])
    original: Tensor | None = None
    for name, run in sides.items():
        started = time.perf_counter()
        logits = run(tokens)
        figures[name].seconds += time.perf_counter() - started
        original = logits if original is None else original
        losses = 0.0
        for rows in torch.arange(len(tokens)).split(ROWS_AT_ONCE):
            p, q = original[rows].float().log_softmax(-1), logits[rows].float().log_softmax(-1)
            figures[name].divergence += float((p.exp() * (p - q)).sum(-1).double().sum())
            figures[name].agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
            with_target = rows[rows < len(targets)]
            losses -= float(q[: len(with_target)].gather(1, targets[with_target, None]).double().sum())
        figures[name].losses.append(losses / len(targets))
        figures[name].token_count += len(tokens)


def transformers_logits(model: Path, threads: int) -> Logits:
    """The checkpoint in float32, by transformers."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, local_files_only=True, dtype=torch.float32).eval()

    def run(tokens: np.ndarray) -> Tensor:
        with torch.no_grad():
            logits: Tensor = loaded(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0]
        return logits

    return run


def artifact_logits(folder: Path, threads: int) -> Logits:
    """An artifact, by its own runtime: all tokens at once, from empty states where it keeps any."""
    from compiler.runtime.session import Session

    session = Session.open(folder, threads)
    logits = session.manifest.outputs[0].name

    def run(tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(session.run(dict(_inputs(session.manifest, tokens)))[logits][0])

    return run


def _inputs(manifest: Any, tokens: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    count = len(tokens)
    given = {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, count)),
        "logit_positions": np.arange(count),
    }
    sizes = {"batch": 1, "capacity": count}
    for spec in manifest.inputs:
        if spec.name in given:
            yield spec.name, given[spec.name].astype(spec.dtype)
        else:
            yield spec.name, np.zeros([d if isinstance(d, int) else sizes[d] for d in spec.shape], spec.dtype)


def drawn_recalls(program: Program, probe: RecallProbe, answers: int, reach: int = REACH) -> list[Recall]:
    """Questions that no compile uses, so many answers at least, which ask `reach` tokens back."""
    drawn: list[Recall] = []
    seed = FIRST_SEED
    while sum(len(one.answers) for one in drawn) < answers:
        drawn += probe.drawn(program, seed, reach=reach)
        seed += 1
    return drawn
