"""A contender of the decoding benchmark: a process that runs only while it is asked something."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from measurement import Side

WORKER = Path(__file__).resolve().parent / "decode_worker.py"
CACHE_TYPES = {"llama.cpp": "float16", "genai": "float32", "transformers": "float32"}
"""What each peer keeps keys and values in, by default."""
BANDWIDTH_MEGABYTES = 1024


class DecodeSide(Side):
    """An engine with one text, stopped by the system between questions so that none of its threads spins."""

    def __init__(
        self, name: str, python: str | Path, engine: str, path: Path, threads: int, values_per_token: int, longest: int
    ) -> None:
        """`values_per_token` is how many numbers the model keeps of a token, `longest` for how many it makes room."""
        super().__init__(name, python, engine, path.resolve(), threads, WORKER, ("--context", str(longest)))
        self.cache_type = CACHE_TYPES.get(engine) or _artifact_cache_type(path)
        self._cache_bytes_per_token = values_per_token * {"int8": 1, "float16": 2, "float32": 4}[self.cache_type]
        self._stop()
        self.version: str = self.ask({"do": "memory"})["version"]

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Wake it, send a command, wait for its answer, and stop it again."""
        os.kill(self._process.pid, signal.SIGCONT)
        answer = super().ask(command)
        self._stop()
        return answer

    def close(self) -> None:
        """End the process."""
        os.kill(self._process.pid, signal.SIGCONT)
        super().close()

    @property
    def weight_bytes(self) -> int:
        """The file of the weights, and of the graph where they are apart."""
        if self.path.is_file():
            return self.path.stat().st_size
        names = ("*.onnx", "*.onnx.data", "*.safetensors")
        return sum(file.stat().st_size for name in names for file in self.path.glob(name))

    def cache_bytes(self, tokens: int) -> int:
        """What the keys and values of so many tokens take."""
        return tokens * self._cache_bytes_per_token

    def memory_mb(self) -> dict[str, float]:
        """What it holds now, and how much of that are files: programs, libraries, weights that are mapped."""
        answer = self.ask({"do": "memory"})
        return {"resident_mb": answer["resident_bytes"] / 1e6, "resident_files_mb": answer["file_bytes"] / 1e6}

    def _stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)


def cache_values_per_token(checkpoint: Path) -> int:
    """Keys and values of all layers, as a checkpoint's config.json has them."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    values: int = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    return values


def measure_bandwidth(python: str | Path, threads: int) -> float:
    """Bytes a second that so many threads read together from memory."""
    side = Side("memory", python, "none", Path(), threads, WORKER)
    found: float = side.ask({"do": "bandwidth", "megabytes": BANDWIDTH_MEGABYTES})["bytes_per_second"]
    side.close()
    return found


def _artifact_cache_type(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    types: dict[str, str] = {spec["name"]: spec["dtype"] for spec in manifest["inputs"]}
    return types[manifest["generation"]["states"][0]["past"]]
