"""How much faster one artifact of a language model reads a prompt and writes than another of the same model."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np

from compiler.evidence.turns import alternating_seconds
from compiler.runtime.generation.decoder import Decoder


def decoding_gain(
    folder: Path, original: Path, prompt_tokens: int, written: int, threads: int, rounds: int
) -> dict[str, float]:
    """Tokens a second of a prompt and of what follows it, and how much more that is than of `original`, in turns."""
    decoders = {name: Decoder.open(path, 1, threads) for name, path in (("own", folder), ("original", original))}
    prompt = np.random.default_rng(0).integers(0, 1000, prompt_tokens).tolist()

    def read(decoder: Decoder) -> None:
        decoder.clear(0)
        decoder.prefill(0, prompt)

    def write(decoder: Decoder) -> None:
        decoder.take_back(0, prompt_tokens)
        for _ in range(written):
            decoder.decode([1])

    found = {}
    for name, call, count in (("prefill", read, prompt_tokens), ("decode", write, written)):
        calls = {side: (lambda one=decoder, call=call: call(one)) for side, decoder in decoders.items()}
        seconds = alternating_seconds(calls, rounds)
        gains = [original / own for original, own in zip(seconds["original"], seconds["own"], strict=True)]
        found[f"{name}_tokens_per_second"] = round(count / statistics.median(seconds["own"]), 1)
        found[f"{name}_gain"] = round(statistics.median(gains), 3)
    return found
