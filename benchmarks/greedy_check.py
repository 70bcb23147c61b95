"""Whether a text is a greedy continuation of its prompt, to rounding.

Texts that are decoded beside others pass through other kernels than one that is decoded alone, and round otherwise:
where two tokens are almost equally likely, either may come. Here the model is given the prompt with the text, and each
token of the text must be as likely as the likeliest, to a tolerance. A text that got a piece of another one is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOLERANCE = 0.25
"""Of logits, whose spread is about 10."""


class GreedyCheck:
    """An artifact that judges texts."""

    def __init__(self, folder: Path, threads: int) -> None:
        from compiler.runtime.generation.decoder import Decoder
        from compiler.runtime.generation.text_codec import TextCodec

        self._decoder = Decoder.open(folder, 1, threads)
        self.codec = TextCodec(folder, self._decoder.manifest)

    def prompt_tokens(self, body: dict[str, Any]) -> list[int]:
        """The prompt of a request."""
        return self.codec.render_chat(body["messages"]) if "messages" in body else self.codec.encode(body["prompt"])

    def largest_gap(self, prompt: Sequence[int], text: str) -> float:
        """The most that a token of `text` lies below the likeliest one, in logits."""
        tokens = self.codec.tokenizer.encode(text, add_special_tokens=False).ids
        self._decoder.clear(0)
        logits, gaps = self._decoder.prefill(0, prompt), [0.0]
        for token in tokens:
            gaps.append(float(logits.max() - logits[token]))
            logits = self._decoder.extend(0, [token])[-1]
        return max(gaps)
