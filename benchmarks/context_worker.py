"""One artifact of the hybrid benchmark in a process of its own: reads JSON commands, a line each, and answers in kind.

    {"do": "read", "tokens": [...]}                 ->  {"seconds": ...}   forgets all and reads a prompt
    {"do": "decode", "at": 32768, "count": 32}      ->  {"seconds": ...}   writes so many tokens behind a context
    {"do": "write", "count": 32}                    ->  {"seconds": ..., "scores": [...]}   writes behind what is there
    {"do": "memory"}                                ->  {"resident_bytes": ..., "state_bytes": ..., "version": "..."}

A context to decode behind need not be read: time depends on its length alone, so the states are filled with numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from decode_worker import claim_standard_output, resident_bytes

from compiler.runtime.generation.decoder import Decoder

WARM_UP = 2
"""Calls before the clock starts: the first one of a length binds its memory."""


def main() -> None:
    """Answer commands until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("artifact",))
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    answers = claim_standard_output()
    decoder = Decoder.open(arguments.path, 1, arguments.threads)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), decoder)), file=answers, flush=True)


def _answer(command: dict[str, Any], decoder: Decoder) -> dict[str, Any]:
    if command["do"] == "memory":
        import onnxruntime

        version = f"onnxruntime {onnxruntime.__version__}"
        return {"resident_bytes": resident_bytes(), "state_bytes": decoder.state_bytes, "version": version}
    if command["do"] == "read":
        decoder.clear(0)
        started = time.perf_counter()
        decoder.prefill(0, command["tokens"]).argmax()
        return {"seconds": time.perf_counter() - started}
    if command["do"] == "decode":
        stand_behind(decoder, command["at"], command["count"] + WARM_UP)
    token = 1
    for _ in range(WARM_UP):
        token = int(decoder.decode([token])[0].argmax())
    started = time.perf_counter()
    for _ in range(command["count"]):
        token = int(decoder.decode([token])[0].argmax())
    return {"seconds": time.perf_counter() - started, "scores": router_scores(decoder)}


def router_scores(decoder: Decoder) -> list[float]:
    """Of row 0, by routed layer: above 0 where it attends to all tokens. A router's state ends with its score."""
    rows = (state.array[0] for state in decoder._buffers.states if state.room is None)
    return [float(row[-1]) for row in rows if row.ndim == 1]


def stand_behind(decoder: Decoder, context: int, room: int) -> None:
    """Let row 0 be a text of `context` tokens, its states small random numbers, with room for some more."""
    buffers = decoder._buffers
    if not buffers.fits(context + room):
        decoder._calls.clear()
        buffers.grow(context + room, [0])
    random = np.random.default_rng(context)
    for state in buffers.states:
        block = random.standard_normal(1 << 16).astype(np.float32) * 0.1
        part = state.array[0]
        if state.room is not None:
            part = part[(slice(None),) * (state.room - 1) + (slice(context),)]
        filled = (block * 300).astype(np.int8) if part.dtype == np.int8 else block.astype(part.dtype)
        part[...] = np.resize(filled, part.shape)
    decoder.lengths[0] = context


if __name__ == "__main__":
    main()
