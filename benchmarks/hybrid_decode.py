"""Hybrid artifacts against the full-attention one: decoding behind 1k to 64k tokens, reading prompts, and memory.

    python benchmarks/hybrid_decode.py full=ARTIFACT hybrid=ARTIFACT [NAME=ARTIFACT ...] [--rounds 7] [--results FOLDER]

All artifacts are of one model and one compiler, the first one being what the others are compared with, as from

    compile MODEL --passes make-incremental:context=66000,quantize:bits=4 -o full
    compile MODEL --passes make-incremental:context=66000,quantize:bits=4,quantize-cache -o full-int8-cache
    compile MODEL --passes linear-attention:kind=gated-delta:window=64:layers=auto-0.75,make-incremental:context=66000,\
quantize:bits=4 -o hybrid

and so on. Every side is a process of its own, stopped by the system while another one is measured; sides take turns,
and take turns at going first. Contexts are random: those to decode behind are filled into the states, prompts are read.
Tables and a chart go to the terminal and to hybrid_decode.json, .md and .svg among the results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from context_chart import context_chart
from measurement import Side
from minilm_int8 import processor
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
PROMPTS = (2048, 8192)
DECODE, PREFILL, CACHE = "decode_tokens_per_second", "prefill_tokens_per_second", "cache_bytes"


class ContextSide(Side):
    """An artifact with one text, stopped by the system between questions so that none of its threads spins."""

    def __init__(self, name: str, path: Path, threads: int) -> None:
        super().__init__(name, sys.executable, "artifact", path.resolve(), threads, HERE / "context_worker.py")
        self.manifest = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        os.kill(self._process.pid, signal.SIGSTOP)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Wake it, send a command, wait for its answer, and stop it again."""
        os.kill(self._process.pid, signal.SIGCONT)
        answer = super().ask(command)
        os.kill(self._process.pid, signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End the process."""
        os.kill(self._process.pid, signal.SIGCONT)
        super().close()

    def cache_bytes(self, tokens: int) -> int:
        """What the states of a text of so many tokens take."""
        states = {state["past"] for state in self.manifest["generation"]["states"]}
        total = 0
        for spec in self.manifest["inputs"]:
            if spec["name"] in states:
                sizes = [tokens if isinstance(size, str) else size for size in spec["shape"][1:]]
                total += int(np.prod(sizes)) * np.dtype(spec["dtype"]).itemsize
        return total


def main() -> None:
    """Measure, show, write."""
    arguments = _arguments()
    sides = [ContextSide(name, Path(path), arguments.threads) for name, path in arguments.side]
    limit = min(side.manifest["generation"]["context_length"] or max(CONTEXTS) * 2 for side in sides)
    contexts = [one for one in arguments.context if one + arguments.tokens + 8 <= limit]
    prompts = [one for one in arguments.prompt if one <= limit]
    console = Console(stderr=True)
    try:
        record = {
            "machine": {
                "processor": processor(),
                "threads": arguments.threads,
                "python": platform.python_version(),
                "engine": sides[0].ask({"do": "memory"})["version"],
            },
            "rounds": arguments.rounds,
            "decode": {str(one): _decode(sides, one, arguments, console) for one in contexts},
            "prefill": {str(one): _prefill(sides, one, arguments, console) for one in prompts},
        }
    finally:
        for side in sides:
            side.close()
    write_hybrid_results(record, arguments.results, Console())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", nargs="+", type=_named, metavar="NAME=ARTIFACT")
    parser.add_argument("--context", type=int, action="append", help="tokens to decode behind; may be given again")
    parser.add_argument("--prompt", type=int, action="append", help="tokens of a prompt to read; may be given again")
    parser.add_argument("--tokens", type=int, default=32, help="how many are decoded for one figure")
    parser.add_argument("--rounds", type=int, default=7, help="of decoding")
    parser.add_argument("--reads", type=int, default=3, help="rounds of reading prompts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the tables go")
    arguments = parser.parse_args()
    arguments.context = sorted(arguments.context or CONTEXTS)
    arguments.prompt = sorted(arguments.prompt or PROMPTS)
    return arguments


def _named(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=ARTIFACT")
    return name, path


def _decode(
    sides: Sequence[ContextSide], context: int, arguments: argparse.Namespace, console: Console
) -> dict[str, Any]:
    command = {"do": "decode", "at": context, "count": arguments.tokens}
    seconds = _alternate(sides, command, arguments.rounds)
    console.print(f"decoding behind {context} tokens: measured")
    return {
        side.name: {
            DECODE: [arguments.tokens / one for one in seconds[side.name]],
            CACHE: side.cache_bytes(context),
            "resident_bytes": side.ask({"do": "memory"})["resident_bytes"],
        }
        for side in sides
    }


def _prefill(
    sides: Sequence[ContextSide], count: int, arguments: argparse.Namespace, console: Console
) -> dict[str, Any]:
    size = sides[0].manifest["generation"]["vocabulary_size"]
    tokens = np.random.default_rng(count).integers(size // 20, size, count).tolist()
    seconds = _alternate(sides, {"do": "read", "tokens": tokens}, arguments.reads)
    console.print(f"a prompt of {count} tokens: measured")
    return {side.name: {PREFILL: [count / one for one in seconds[side.name]]} for side in sides}


def _alternate(sides: Sequence[ContextSide], command: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            seconds[side.name].append(side.ask(command)["seconds"])
    return seconds


def write_hybrid_results(record: dict[str, Any], folder: Path, console: Console) -> None:
    """Show `record`; write hybrid_decode.json, .md and .svg into `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "hybrid_decode.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    machine = record["machine"]
    lines = [
        "# Decoding hybrids behind long contexts",
        "",
        f"{machine['processor']}; {machine['threads']} threads; {machine['engine']}. Median (quartiles) of alternating "
        "rounds; in brackets, a side's speed over the first side's, round by round. States are those of one text.",
    ]
    parts = (("decode", DECODE, "tokens a second behind {} tokens"), ("prefill", PREFILL, "a prompt of {} tokens"))
    for part, key, title in parts:
        for context, sides in record[part].items():
            headings = ["side", "tokens a second", *(["states, MB"] if part == "decode" else [])]
            rows = _rows(sides, key)
            table = Table(*headings, title=title.format(context))
            for row in rows:
                table.add_row(*row)
            console.print(table)
            lines += ["", f"## {title.format(context).capitalize()}", ""]
            lines += ["| " + " | ".join(cells) + " |" for cells in (headings, ["---"] * len(headings), *rows)]
    (folder / "hybrid_decode.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = list(next(iter(record["decode"].values())))
    rates = {
        name: {int(context): statistics.median(sides[name][DECODE]) for context, sides in record["decode"].items()}
        for name in names
    }
    chart = context_chart(rates, "Tokens decoded a second, by tokens of context")
    (folder / "hybrid_decode.svg").write_text(chart, encoding="utf-8")


def _rows(sides: dict[str, Any], key: str) -> list[list[str]]:
    first = next(iter(sides.values()))
    rows = []
    for name, side in sides.items():
        lower, median, upper = statistics.quantiles(side[key], n=4, method="inclusive")
        ratio = statistics.median(one / other for one, other in zip(side[key], first[key], strict=True))
        cells = [name, f"{median:.1f} ({lower:.1f} to {upper:.1f}) [{ratio:.2f}x]"]
        if CACHE in side:
            cells.append(f"{side[CACHE] / 1e6:.1f} [{side[CACHE] / first[CACHE]:.2f}x]")
        rows.append(cells)
    return rows


if __name__ == "__main__":
    main()
