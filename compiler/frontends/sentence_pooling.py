"""The steps that sentence-transformers puts behind a transformer (modules.json): pooling and normalisation.

Source: Reimers and Gurevych 2019, arXiv:1908.10084, section 3; definitions as in the `Pooling` module of
sentence-transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compiler.errors import CompilerError

OUTPUT = "sentence_embedding"
LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}


def pool_cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first attended token. hidden [batch, sequence, width], mask [batch, sequence] -> [batch, width]."""
    first = mask.to(torch.int32).argmax(dim=1)
    return hidden.gather(1, first[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


def pool_max(hidden: Tensor, mask: Tensor) -> Tensor:
    """The greatest value of each channel over attended tokens."""
    return hidden.masked_fill(mask[:, :, None] == 0, -1e9).amax(dim=1)


def pool_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of each channel over attended tokens."""
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def pool_mean_sqrt(hidden: Tensor, mask: Tensor) -> Tensor:
    """The sum of each channel over attended tokens, divided by the square root of their count."""
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9).sqrt()


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": pool_cls,
    "max": pool_max,
    "mean": pool_mean,
    "mean_sqrt_len_tokens": pool_mean_sqrt,
}


@dataclass(frozen=True)
class SentencePooling:
    """Pool token vectors into one vector a sentence; several poolings are joined. `normalize` makes its length 1."""

    modes: tuple[str, ...]
    normalize: bool

    def __call__(self, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`sentence_embedding` [batch, width] from `last_hidden_state` [batch, sequence, width]."""
        hidden, mask = outputs["last_hidden_state"], inputs["attention_mask"]
        pooled = [POOLINGS[mode](hidden, mask) for mode in self.modes]
        vectors = pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)
        return {OUTPUT: torch.nn.functional.normalize(vectors, p=2.0, dim=1) if self.normalize else vectors}


def read_sentence_pooling(doing: str, folder: Path) -> SentencePooling | None:
    """What modules.json puts behind the transformer; None without that file. Raises for steps not known."""
    if not (folder / "modules.json").is_file():
        return None
    steps = _json(doing, folder / "modules.json")
    kinds = [str(step.get("type", "")).rsplit(".", 1)[-1] for step in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        hint = "Known are Transformer, Pooling and an optional Normalize; name a file.py:factory for others."
        raise CompilerError(doing, f"modules.json has the steps {', '.join(kinds)}", hint)
    settings = _json(doing, folder / steps[1]["path"] / "config.json")
    modes = _modes(settings)
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown or not modes:
        problem = f"the pooling {', '.join(unknown) or '(none)'} is not known"
        raise CompilerError(doing, problem, f"Known poolings: {', '.join(POOLINGS)}.")
    return SentencePooling(modes, normalize="Normalize" in kinds)


def _modes(settings: dict[str, Any]) -> tuple[str, ...]:
    if "pooling_mode" in settings:
        modes = settings["pooling_mode"]
        return (modes,) if isinstance(modes, str) else tuple(modes)
    named = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
    ordered = sorted(named, key=lambda key: list(LEGACY_MODES).index(key) if key in LEGACY_MODES else len(LEGACY_MODES))
    return tuple(LEGACY_MODES.get(key, key.removeprefix("pooling_mode_")) for key in ordered)


def _json(doing: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CompilerError(doing, f"{path.parent.name}/{path.name} is missing", "Fetch the folder again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CompilerError(doing, f"{path.parent.name}/{path.name} is damaged ({error})", "Fetch it again.") from error
