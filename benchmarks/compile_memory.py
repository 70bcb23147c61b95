"""What compiling takes in memory: the peak of each phase, for a llama with random weights in bfloat16 shards on disk.

    python benchmarks/compile_memory.py                     1.1 billion weights, the shape of TinyLlama
    python benchmarks/compile_memory.py --size small        a tenth of it

The model is written to a temporary folder shard by shard and compiled by a process of its own, whose resident memory is
read every 20 ms and set down under the phase that it has last announced. Random weights compress like any others.
Writes results/compile_memory.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TEXT = Path(__file__).parents[1] / "compiler" / "evidence" / "sentences.txt"
PASSES = "make-incremental,quantize:bits=4"
SECONDS_BETWEEN = 0.02
LIMIT_BYTES = 6e9
LIMIT_RATIO = 3.0
SIZES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 2304,
        "vocab_size": 32000,
    },
    "tinyllama": {
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 32000,
    },
}


@dataclass
class Phase:
    """A phase of a compile: the largest resident memory while it ran, and the part of that which no file backs."""

    name: str
    resident_bytes: int = 0
    anonymous_bytes: int = 0
    seconds: float = 0.0


def write_model(folder: Path, size: str) -> int:
    """A llama checkpoint with random weights, a layer a shard, and a tokenizer of its own; the number of weights."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **SIZES[size],
        max_position_embeddings=2048,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=False,
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        place = re.search(r"layers\.(\d+)\.", name)
        shards.setdefault(f"model-{place[1] if place else 'rest'}.safetensors", []).append(name)
    generator = torch.Generator().manual_seed(0)
    for file, names in shards.items():
        tensors = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if len(shapes[name]) == 1
            else torch.randn(shapes[name], generator=generator, dtype=torch.bfloat16) * 0.02
            for name in names
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
    placed = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train([str(TEXT)], trainers.BpeTrainer(vocab_size=config.vocab_size, show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    return sum(shape.numel() for shape in shapes.values())


def measure(model: Path, output: Path) -> list[Phase]:
    """Compile in a process of its own and watch it. Raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "compiler.cli", str(model), "--passes", PASSES, "-o", str(output)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    phases = [Phase("starting")]
    lines: list[str] = []

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            name = phase_name(line)
            if name and name != phases[-1].name:
                phases.append(Phase(name))

    listener = threading.Thread(target=listen)
    listener.start()
    while process.poll() is None:
        began = time.perf_counter()
        resident, anonymous = memory_of(process.pid)
        time.sleep(SECONDS_BETWEEN)
        phase = phases[-1]
        phase.resident_bytes = max(phase.resident_bytes, resident)
        phase.anonymous_bytes = max(phase.anonymous_bytes, anonymous)
        phase.seconds += time.perf_counter() - began
    listener.join()
    if process.returncode:
        reached = "".join(f"{phase.name}: {phase.resident_bytes / 1e9:.2f} GB\n" for phase in phases)
        raise RuntimeError("the compile failed:\n" + "".join(lines[-20:]) + reached)
    return phases


def phase_name(line: str) -> str | None:
    """The phase that a line of progress announces; what a pass says of one site belongs to the pass."""
    text = line.strip().split(": ")[0]
    return text if re.fullmatch(r"[a-z][a-z0-9 _-]{3,40}", text) else None


def memory_of(process_id: int) -> tuple[int, int]:
    """Resident bytes of a process, and those of them that no file backs."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return 0, 0
    found = dict(re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", status, re.MULTILINE))
    return int(found.get("VmRSS", 0)) * 1024, int(found.get("RssAnon", 0)) * 1024


def report(size: str, weights: int, phases: list[Phase], artifact_bytes: int) -> dict[str, Any]:
    """The numbers, and whether they hold."""
    peak = max(phase.resident_bytes for phase in phases)
    return {
        "size": size,
        "passes": PASSES,
        "weights": weights,
        "float32_bytes": 4 * weights,
        "artifact_bytes": artifact_bytes,
        "peak_bytes": peak,
        "peak_over_float32": peak / (4 * weights),
        "holds": peak < LIMIT_RATIO * 4 * weights and (size != "tinyllama" or peak < LIMIT_BYTES),
        "phases": [phase.__dict__ for phase in phases if phase.resident_bytes],
    }


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# Memory of compiling a llama of {found['weights'] / 1e9:.2f} billion weights",
        "",
        f"bfloat16 shards on disk, `--passes {found['passes']}`. Peak {found['peak_bytes'] / 1e9:.2f} GB resident, "
        f"{found['peak_over_float32']:.2f} times the float32 weights ({found['float32_bytes'] / 1e9:.2f} GB); the "
        f"artifact has {found['artifact_bytes'] / 1e9:.2f} GB. Allowed: {LIMIT_RATIO:g} times, and "
        f"{LIMIT_BYTES / 1e9:g} GB for 1.1 billion.",
        "",
        "| phase | largest resident GB | of that no file backs (largest) GB | seconds |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {phase['name']} | {phase['resident_bytes'] / 1e9:.2f} | {phase['anonymous_bytes'] / 1e9:.2f} "
        f"| {phase['seconds']:.0f} |"
        for phase in found["phases"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="tinyllama")
    parser.add_argument("--model", type=Path, help="keep the model in this folder, and use it where it stands there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compile-memory-") as scratch:
        model = given.model or Path(scratch) / "model"
        if not (model / "config.json").is_file():
            model.mkdir(parents=True, exist_ok=True)
            write_model(model, given.size)
        weights = sum(path.stat().st_size for path in model.glob("*.safetensors")) // 2
        output = Path(scratch) / "artifact"
        phases = measure(model, output)
        found = report(given.size, weights, phases, sum(path.stat().st_size for path in output.iterdir()))
    print(markdown(found))
    if given.size == "tinyllama":
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "compile_memory.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "compile_memory.md").write_text(markdown(found))


if __name__ == "__main__":
    main()
