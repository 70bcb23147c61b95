"""What a decoder artifact holds in memory: when its runtime is imported, opened, has read a prompt, and decodes.

    python benchmarks/decode_memory.py ARTIFACT [ARTIFACT ...] [--context 128 --context 2048] [--threads 2]

Every line is a fresh process, and what the system tells of all its pages in the end: programs and libraries are files
that it maps and only reads, which other processes share; weights are the artifact's own files, mapped; the rest is
memory of the process alone: the interpreter's objects, packed weights, states, scratch. Prompts and the tokens that
follow are random, so that they ask for as many different rows of the embedding as can be. The table goes to the
terminal and to benchmarks/results/decode_memory.*.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from compiler.runtime.manifest import Manifest

HERE = Path(__file__).resolve().parent
CONTEXTS = (128, 2048, 8000)
KINDS = ("libraries", "mapped_weights", "own")
HEADINGS = (
    "artifact, context",
    "stage",
    "resident MB",
    "libraries",
    "mapped weights",
    "own",
    "resident / (weights + cache)",
    "less libraries",
)


def main() -> None:
    """Measure every artifact at every context, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="+")
    parser.add_argument("--context", type=int, action="append", help="tokens; may be given again")
    parser.add_argument("--tokens", type=int, default=64, help="how many are decoded after the prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the tables go")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    contexts = sorted(arguments.context or CONTEXTS)
    if arguments.inside:
        print(json.dumps(_stages(arguments.artifact[0].resolve(), contexts[0], arguments.tokens, arguments.threads)))
        return
    from minilm_int8 import processor

    sides = {
        f"{path.resolve().name}, {context}": _measured(path, context, arguments)
        for path in arguments.artifact
        for context in contexts
    }
    machine = {"processor": processor(), "python": platform.python_version(), "system": platform.release()}
    _write({"machine": machine, "threads": arguments.threads, "sides": sides}, arguments.results)


def _measured(path: Path, context: int, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, str(path), "--inside", "--context", str(context)]
    command += ["--tokens", str(arguments.tokens), "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def _stages(folder: Path, context: int, tokens: int, threads: int) -> dict[str, Any]:
    """In the process that is measured: megabytes of every kind after every stage, and what has to be held."""
    import onnxruntime

    from compiler.runtime.generation.decoder import Decoder

    stages = {f"imported (onnxruntime {onnxruntime.__version__})": resident_megabytes(folder)}
    decoder = Decoder.open(folder, 1, threads)
    stages["opened"] = resident_megabytes(folder)
    size = decoder.generation.vocabulary_size
    text = np.random.default_rng(context).integers(size // 20, size, context + tokens).tolist()
    decoder.prefill(0, text[:context])
    stages["prompt read"] = resident_megabytes(folder)
    for token in text[context:]:
        decoder.decode([token])
    stages["decoding"] = resident_megabytes(folder)
    files = [file for name in ("*.onnx", "*.onnx.data") for file in folder.glob(name)]
    return {
        "weights_mb": sum(file.stat().st_size for file in files) / 1e6,
        "cache_mb": state_bytes(decoder.manifest, context + tokens) / 1e6,
        "stages_mb": stages,
    }


def state_bytes(manifest: Manifest, tokens: int) -> int:
    """What the states of one text of so many tokens take."""
    assert manifest.generation is not None
    pasts = {state.past for state in manifest.generation.states}
    return sum(
        math.prod(tokens if isinstance(dim, str) else dim for dim in spec.shape[1:]) * np.dtype(spec.dtype).itemsize
        for spec in manifest.inputs
        if spec.name in pasts
    )


def resident_megabytes(folder: Path) -> dict[str, float]:
    """Of this process: clean pages of programs and libraries, of files in `folder`, and all others."""
    found, kind = dict.fromkeys(KINDS, 0), "own"
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            path = fields[5] if len(fields) == 6 else ""
            kind = "mapped_weights" if path.startswith(f"{folder}/") else "libraries"
        elif fields[0] == "Rss:":
            found[kind] += int(fields[1]) * 1024
        elif fields[0] == "Anonymous:":
            found[kind] -= int(fields[1]) * 1024
            found["own"] += int(fields[1]) * 1024
    return {kind: count / 1e6 for kind, count in found.items()}


def _write(record: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    folder.mkdir(exist_ok=True)
    (folder / "decode_memory.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    rows = list(_rows(record["sides"]))
    table = Table(*HEADINGS, title="memory of decoding")
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *rows)]
    where = f"{record['machine']['processor']}; {record['threads']} threads."
    (folder / "decode_memory.md").write_text(
        f"# Memory of decoding\n\n{where} {_counted()}\n\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )


def _counted() -> str:
    assert __doc__ is not None
    return " ".join(__doc__.split("\n\n")[2].split()).rsplit(" The table", 1)[0]


def _rows(sides: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, side in sides.items():
        needed = side["weights_mb"] + side["cache_mb"]
        for index, (stage, kinds) in enumerate(side["stages_mb"].items()):
            total = sum(kinds.values())
            last = index == len(side["stages_mb"]) - 1
            shares = [f"{total / needed:.2f}", f"{(total - kinds['libraries']) / needed:.2f}"] if last else ["", ""]
            title = f"{name} ({side['weights_mb']:.0f} + {side['cache_mb']:.0f} MB)" if index == 0 else ""
            yield (title, stage, f"{total:.0f}", *(f"{kinds[kind]:.0f}" for kind in KINDS), *shares)


if __name__ == "__main__":
    main()
