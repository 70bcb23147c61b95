"""onnxruntime-genai: its own builder's 4-bit model for processors, and decoding through its generator.

    python benchmarks/genai_peer.py CHECKPOINT TARGET

The builder's defaults are kept: symmetric blocks of 32, activations in 8 bits, output and embedding stored once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def build(checkpoint: Path, target: Path) -> None:
    """Make the 4-bit model of a checkpoint folder. Raises SystemExit when the builder fails."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(target)]
        done = subprocess.run(
            [*command, "-p", "int4", "-e", "cpu", "-c", cache], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"onnxruntime-genai's builder failed:\n{done.stderr[-2000:]}")


class GenaiDecoding:
    """A folder with genai_config.json in onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        import onnxruntime_genai

        self.version = f"onnxruntime-genai {onnxruntime_genai.__version__}"
        self._library = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = onnxruntime_genai.Model(config)
        self._options = onnxruntime_genai.GeneratorParams(self._model)
        self._options.set_search_options(max_length=context, min_length=context, do_sample=False, batch_size=1)
        self._generator = onnxruntime_genai.Generator(self._model, self._options)

    def read(self, tokens: list[int]) -> int:
        self._generator.rewind_to(0)
        self._generator.append_tokens([tokens])
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])

    def take_back(self, length: int) -> None:
        self._generator.rewind_to(length)

    def decode(self, token: int, count: int) -> None:
        """The token appended is read at once; each further call reads the choice of the one before."""
        self._generator.append_tokens([[token]])
        for _ in range(count):
            self._generator.generate_next_token()


def main() -> None:
    """Build the peer's model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    build(arguments.checkpoint, arguments.target)


if __name__ == "__main__":
    main()
