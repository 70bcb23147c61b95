"""`compile serve` under load: streaming clients, some of them killed, and requests that must be refused.

    python benchmarks/serve_load.py ARTIFACT [--minutes 5] [--clients 16] [--slots 8] [--threads 2]

Every prompt is first answered alone. Then all clients stream at the same time: each text that is read to its end is
compared with the one given alone, and where it differs, with what the model itself finds likeliest (`greedy_check`):
beyond rounding, it is mixed. A stream is lost when it ends early or never. Memory of the server is sampled through the
run. In the end all slots must be free and the server must stop with 0. The table goes to the terminal and to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from greedy_check import TOLERANCE, GreedyCheck
from load_clients import MOST_BODY_BYTES, Prompt, Stream, Tally, load, read_stream
from minilm_int8 import processor
from rich.console import Console
from texts import held_out_texts

HERE = Path(__file__).resolve().parent
PROMPTS = 24
SAMPLE_SECONDS = 1.0


@dataclass
class Samples:
    """Seconds since the load began, and the server's memory then."""

    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    def watch(self, process: psutil.Process, ended: threading.Event) -> None:
        """Take samples until told to stop."""
        began = time.monotonic()
        while not ended.wait(SAMPLE_SECONDS):
            self.seconds.append(time.monotonic() - began)
            self.bytes.append(process.memory_info().rss)

    def record(self) -> dict[str, Any]:
        """Megabytes at the beginning, after a quarter, at most and in the end; growth a minute after that quarter."""
        megabytes = [count / 1e6 for count in self.bytes]
        settled = len(megabytes) // 4
        slope = np.polyfit(np.array(self.seconds[settled:]) / 60, megabytes[settled:], 1)[0]
        return {
            "first_mb": megabytes[0],
            "after_a_quarter_mb": megabytes[settled],
            "most_mb": max(megabytes),
            "last_mb": megabytes[-1],
            "growth_mb_a_minute": float(slope),
            "samples_mb": [round(one, 1) for one in megabytes[:: max(1, len(megabytes) // 60)]],
        }


def main() -> None:
    """Start the server, load it, judge, show, write."""
    arguments = _arguments()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="regraft-benchmark-") as scratch:
        log = Path(scratch) / "server.log"
        server, url, model = _start(arguments, log)
        try:
            record = _measured(arguments, server, url, model, console)
        finally:
            server.send_signal(signal.SIGINT)
            code = server.wait(60)
        record["server"] = {"exit_code": code, "log_lines": len(log.read_text(encoding="utf-8").splitlines())}
    text = _page(record)
    console.print(text, markup=False)
    if arguments.dry:
        print(record["memory"])
    else:
        (HERE / "results" / "serve_load.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (HERE / "results" / "serve_load.md").write_text(text, encoding="utf-8")
    if not _passed(record):
        raise SystemExit("a stream was lost or mixed, a slot was not freed, or a bad request was taken")


def _passed(record: dict[str, Any]) -> bool:
    streams = record["streams"]
    wrong = streams["mixed"] + streams["lost"] + len(record["wrongly_answered"]) + record["server"]["exit_code"]
    return wrong == 0 and record["seconds_until_all_slots_were_free"] is not None


def _start(arguments: argparse.Namespace, log: Path) -> tuple[subprocess.Popen[str], str, str]:
    command = [sys.executable, "-m", "compiler.cli", "serve", str(arguments.artifact), "--port", "0", "--json"]
    command += ["--slots", str(arguments.slots), "--threads", str(arguments.threads)]
    command += ["--max-body-bytes", str(MOST_BODY_BYTES)]
    with log.open("w", encoding="utf-8") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise SystemExit(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
    document = json.loads(line)
    return server, document["url"], document["model"]


def _measured(
    arguments: argparse.Namespace, server: subprocess.Popen[str], url: str, model: str, console: Console
) -> dict[str, Any]:
    prompts = _prompts(model, arguments.tokens)
    console.print(f"{len(prompts)} prompts alone")
    started = time.monotonic()
    alone = asyncio.run(_alone(url, prompts))
    alone_seconds = time.monotonic() - started
    console.print(f"{arguments.clients} clients for {arguments.minutes:g} minutes")
    samples, ended = Samples(), threading.Event()
    watcher = threading.Thread(target=samples.watch, args=(psutil.Process(server.pid), ended))
    watcher.start()
    started = time.monotonic()
    tally = asyncio.run(load(url, prompts, arguments.clients, 60 * arguments.minutes))
    seconds = time.monotonic() - started
    freed = _seconds_until_free(url)
    ended.set()
    watcher.join()
    console.print("judging the texts")
    tokens = sum(stream.completion_tokens for stream in tally.streams)
    return {
        "machine": {"processor": processor(), "threads": arguments.threads, "python": platform.python_version()},
        "model": model,
        "clients": arguments.clients,
        "slots": arguments.slots,
        "minutes": seconds / 60,
        "streams": _judged(arguments, prompts, alone, tally),
        "killed_clients": tally.killed,
        "refused": dict(sorted(tally.refused.items())),
        "wrongly_answered": tally.wrongly_answered,
        "tokens_per_second": tokens / seconds,
        "tokens_per_second_alone": sum(stream.completion_tokens for stream in alone) / alone_seconds,
        "first_token_seconds": _percentiles([stream.first_token_seconds for stream in tally.streams if stream.done]),
        "first_token_seconds_alone": _percentiles([stream.first_token_seconds for stream in alone]),
        "memory": samples.record(),
        "seconds_until_all_slots_were_free": freed,
    }


def _prompts(model: str, tokens: int) -> list[Prompt]:
    """Chats and completions over held-out sentences, greedy, of several lengths."""
    prompts = []
    for index, text in enumerate(held_out_texts()[:PROMPTS]):
        body = {"model": model, "temperature": 0, "max_tokens": tokens // 2 + index * tokens // (2 * PROMPTS)}
        if index % 2:
            prompts.append(Prompt("/v1/completions", body | {"prompt": text}))
        else:
            messages = [{"role": "user", "content": f"Explain this sentence: {text}"}]
            prompts.append(Prompt("/v1/chat/completions", body | {"messages": messages}))
    return prompts


async def _alone(url: str, prompts: list[Prompt]) -> list[Stream]:
    streams = [await read_stream(url, prompt, index) for index, prompt in enumerate(prompts)]
    failed = [stream.error or "it ended early" for stream in streams if not stream.done]
    if failed:
        raise SystemExit(f"a prompt alone was not answered: {failed[0]}")
    return streams


def _seconds_until_free(url: str) -> float | None:
    """How long after the last client left all slots were free; None when they were not after 10 seconds."""
    started = time.monotonic()
    while time.monotonic() - started < 10:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/health") as response:
            document = json.load(response)
        if document["active"] == document["waiting"] == 0:
            return time.monotonic() - started
        time.sleep(0.02)
    return None


def _judged(arguments: argparse.Namespace, prompts: list[Prompt], alone: list[Stream], tally: Tally) -> dict[str, Any]:
    ended = [stream for stream in tally.streams if stream.done]
    lost = [stream for stream in tally.streams if not stream.done]
    same = [stream for stream in ended if stream.text == alone[stream.prompt].text]
    others = sorted({(stream.prompt, stream.text) for stream in ended} - {(one.prompt, one.text) for one in same})
    gaps = {}
    if others:
        check = GreedyCheck(arguments.artifact, arguments.threads)
        for number, text in others:
            gaps[number, text] = check.largest_gap(check.prompt_tokens(prompts[number].body), text)
    mixed = [key for key, gap in gaps.items() if gap > TOLERANCE]
    return {
        "read_to_their_end": len(ended),
        "same_as_alone": len(same),
        "equally_likely_to_rounding": sum((one.prompt, one.text) in gaps for one in ended)
        - sum((one.prompt, one.text) in mixed for one in ended),
        "mixed": sum((one.prompt, one.text) in mixed for one in ended),
        "lost": len(lost),
        "reasons_of_loss": sorted({stream.error or "it ended early" for stream in lost}),
        "largest_gap_in_logits": max(gaps.values(), default=0.0),
        "mixed_texts": [{"prompt": prompts[n].body, "text": t, "alone": alone[n].text} for n, t in mixed[:5]],
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"p50": cuts[9], "p95": cuts[18], "most": max(seconds)}


def _page(record: dict[str, Any]) -> str:
    streams, memory, first = record["streams"], record["memory"], record["first_token_seconds"]
    alone = record["first_token_seconds_alone"]
    freed = record["seconds_until_all_slots_were_free"]
    refused = sum(record["refused"].values())
    rows = [
        ("streams read to their end", f"{streams['read_to_their_end']}"),
        ("the text given alone", f"{streams['same_as_alone']}"),
        ("another, as likely to rounding", f"{streams['equally_likely_to_rounding']}"),
        ("mixed", f"{streams['mixed']}"),
        ("lost", f"{streams['lost']}"),
        ("clients killed on the way", f"{record['killed_clients']}"),
        ("all slots free after the last", "never" if freed is None else f"{freed:.2f} s"),
        ("bad requests, and those not refused as they should be", f"{refused}, {len(record['wrongly_answered'])}"),
        ("tokens a second of whole streams, and alone", _two(record, "tokens_per_second", ".1f")),
        ("time to first token: median, 95 %", f"{first['p50']:.2f} s, {first['p95']:.2f} s"),
        ("the same alone", f"{alone['p50']:.2f} s, {alone['p95']:.2f} s"),
        ("memory: first, after a quarter, last", _memory(memory)),
        ("growth after the first quarter", f"{memory['growth_mb_a_minute']:+.2f} MB a minute"),
        ("exit code", f"{record['server']['exit_code']}"),
    ]
    machine = record["machine"]
    title = f"# compile serve under {record['clients']} streaming clients for {record['minutes']:.1f} minutes\n"
    where = f"{record['model']}; {machine['processor']}, {machine['threads']} used; {record['slots']} slots.\n"
    table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join([title, where, *table]) + "\n"


def _two(record: dict[str, Any], name: str, form: str) -> str:
    return f"{record[name]:{form}}, {record[name + '_alone']:{form}}"


def _memory(memory: dict[str, Any]) -> str:
    return ", ".join(f"{memory[name]:.0f} MB" for name in ("first_mb", "after_a_quarter_mb", "last_mb"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="the longest answer; the shortest is half of it")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
