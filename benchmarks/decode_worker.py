"""One side of the decoding benchmark in a process of its own: reads JSON commands, a line each, and answers in kind.

Run by the interpreter that has the side's engine, so it imports only that engine and numpy.

    {"do": "read", "tokens": [...]}               ->  {"seconds": ...}   forgets all, reads a prompt, chooses a token
    {"do": "decode", "from": 2048, "count": 32}   ->  {"seconds": ...}   takes back what follows, writes so many tokens
    {"do": "memory"}                              ->  {"resident_bytes": ..., "file_bytes": ..., "version": "..."}
    {"do": "bandwidth", "megabytes": 1024}        ->  {"bytes_per_second": ...}   what all threads together can read
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Decoding(Protocol):
    """An open model with one text: every choice is greedy, and the choice is part of what is timed."""

    version: str

    def read(self, tokens: list[int]) -> int:
        """Forget everything, read a prompt, choose the token that follows."""

    def take_back(self, length: int) -> None:
        """Forget what stands from the token `length` on."""

    def decode(self, token: int, count: int) -> None:
        """Read `token`, then what was chosen, `count` tokens in all."""


class ArtifactDecoding:
    """An artifact of Regraft through its own runtime."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        import onnxruntime

        from compiler.runtime.generation.decoder import Decoder

        self.version = f"onnxruntime {onnxruntime.__version__}"
        self._decoder = Decoder.open(folder, 1, threads)
        assert self._decoder.context_length is None or self._decoder.context_length >= context

    def read(self, tokens: list[int]) -> int:
        self._decoder.clear(0)
        return int(self._decoder.prefill(0, tokens).argmax())

    def take_back(self, length: int) -> None:
        self._decoder.take_back(0, length)

    def decode(self, token: int, count: int) -> None:
        for _ in range(count):
            token = int(self._decoder.decode([token])[0].argmax())


def open_decoding(engine: str, path: Path, threads: int, context: int) -> Decoding:
    """The engine by its name, with room for `context` tokens."""
    if engine == "llama.cpp":
        from llama_cpp_peer import LlamaCppDecoding, working_buffers

        return LlamaCppDecoding(path, threads, context, working_buffers(path))
    if engine == "genai":
        from genai_peer import GenaiDecoding

        return GenaiDecoding(path, threads, context)
    if engine == "transformers":
        from transformers_peer import TransformersDecoding

        return TransformersDecoding(path, threads)
    return ArtifactDecoding(path, threads, context)


def main() -> None:
    """Answer commands until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("artifact", "llama.cpp", "genai", "transformers", "none"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=8192)
    arguments = parser.parse_args()
    answers = claim_standard_output()
    side = None
    if arguments.engine != "none":
        side = open_decoding(arguments.engine, arguments.path, arguments.threads, arguments.context)
    print(json.dumps({"ready": side.version if side else ""}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer = read_bandwidth(command, arguments.threads) if side is None else _answer(command, side)
        print(json.dumps(answer), file=answers, flush=True)


def claim_standard_output() -> Any:
    """Standard output for answers alone: what an engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer(command: dict[str, Any], side: Decoding) -> dict[str, Any]:
    if command["do"] == "memory":
        return {"resident_bytes": resident_bytes(), "file_bytes": resident_bytes("RssFile"), "version": side.version}
    if command["do"] == "read":
        started = time.perf_counter()
        side.read(command["tokens"])
        return {"seconds": time.perf_counter() - started}
    side.take_back(command["from"])
    started = time.perf_counter()
    side.decode(command["token"], command["count"])
    return {"seconds": time.perf_counter() - started}


def resident_bytes(kind: str = "VmRSS") -> int:
    """The memory that this process holds now, its program and libraries included; RssFile: these alone."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    return 0


def read_bandwidth(command: dict[str, Any], threads: int) -> dict[str, Any]:
    """Bytes a second that `threads` threads read together from arrays that no cache holds."""
    size = command["megabytes"] * 1_000_000 // 4 // threads
    arrays = [np.ones(size, np.float32) for _ in range(threads)]
    best = min(_seconds_to_read(arrays) for _ in range(5))
    return {"bytes_per_second": threads * size * 4 / best}


def _seconds_to_read(arrays: list[Any]) -> float:
    """A dot product of an array with itself reads it once, without Python's lock."""
    readers = [threading.Thread(target=np.dot, args=(array, array)) for array in arrays]
    started = time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
