"""A healing compile that is killed at random moments and goes on: time lost, and where it ends up against one unkilled.

    python benchmarks/healing_kills.py [--model FOLDER] [--heal 1] [--memory 512] [--kills 3] [--seed 0]

The command heals all-MiniLM-L6-v2 with half its attention as hybrids; SIGKILL comes in each of `--kills` equal parts of
the budget at a random moment. After each kill: the seconds since anything but the clock was kept (work that has to be
done again), and since the clock was (time that the budget does not count). Memory is resident memory while it heals,
above what the process held before, against `memory=`. Writes results/healing_kills.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compile_memory import memory_of
from minilm_int8 import packaged_checkpoint, processor

RESULTS = Path(__file__).resolve().parent / "results"
PASSES = "linear-attention:kind=gated-delta:window=8:layers=every-2nd"
SECONDS_BETWEEN = 0.02
MOST_LOST_SECONDS = 60.0
ROOM = 0.3
"""How much of the end of a part of the budget is left free of kills, so that a resumed run heals before the next."""


@dataclass
class Run:
    """One process: when it said that it heals, how far it was, what it took. Bytes are of resident memory."""

    healing_began: float | None = None
    healing_ended: bool = False
    share: float = 0.0
    before_bytes: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    killed: bool = False

    @property
    def healing_bytes(self) -> int:
        """What healing took on top."""
        return max(0, self.peak_bytes - self.before_bytes)


@dataclass(frozen=True)
class Kill:
    """What a kill cost. `share` is the part of the budget that was spent by then."""

    share: float
    seconds_of_work_lost: float
    seconds_not_counted: float
    healing_mb: float


def main() -> None:
    """Run both, compare, write."""
    given = _arguments()
    model = given.model or packaged_checkpoint()
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="healing-kills-") as scratch:
        folder = Path(scratch)
        kills = []
        for number in range(given.kills):
            share = (number + moments.uniform(0.1, 1.0 - ROOM)) / given.kills
            kills.append(_killed(_command(given, model, folder / "killed"), folder / "killed", share))
            print(kills[-1], file=sys.stderr, flush=True)
        finishing = watch(_command(given, model, folder / "killed"))
        whole = watch(_command(given, model, folder / "whole"))
        records = {name: _record(folder / name) for name in ("killed", "whole")}
    peaks = [kill.healing_mb for kill in kills] + [one.healing_bytes / 1e6 for one in (finishing, whole)]
    result = {
        "machine": {"processor": processor(), "threads": given.threads, "python": platform.python_version()},
        "passes": PASSES,
        "heal_minutes": given.heal,
        "memory_budget_mb": given.memory,
        "kills": [asdict(kill) for kill in kills],
        "peak_healing_mb": max(peaks),
        **records,
    }
    result["holds"] = {
        "time": max(kill.seconds_of_work_lost for kill in kills) <= MOST_LOST_SECONDS,
        "memory": max(peaks) <= given.memory,
        "loss_against_unkilled": records["killed"]["end"] / records["whole"]["end"],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "healing_kills.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = markdown(result)
    (RESULTS / "healing_kills.md").write_text(page, encoding="utf-8")
    print(page)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; the packaged all-MiniLM-L6-v2 if left out")
    parser.add_argument("--heal", type=float, default=1.0, help="minutes")
    parser.add_argument("--memory", type=int, default=512, help="megabytes that healing may take on top of the model")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _command(given: argparse.Namespace, model: Path, folder: Path) -> subprocess.Popen[str]:
    """The compile, which keeps its work in `folder`/work and writes `folder`/artifact."""
    heal = f"{given.heal:g}:memory={given.memory}"
    command = [sys.executable, "-m", "compiler.cli", str(model), "--passes", PASSES, "--heal", heal]
    command += ["--heal-folder", str(folder / "work"), "-o", str(folder / "artifact")]
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": str(given.threads)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def watch(process: subprocess.Popen[str], kill_at: float | None = None) -> Run:
    """Follow a compile to its end, or kill it once it says that this share of the budget is spent."""
    run, started, lines = Run(), time.monotonic(), []
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            resident, _ = memory_of(process.pid)
            if run.healing_began is None:
                run.before_bytes = resident or run.before_bytes
            elif not run.healing_ended:
                run.peak_bytes = max(run.peak_bytes, resident)
            time.sleep(SECONDS_BETWEEN)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if run.healing_began is None and ": healing" in line:
                run.healing_began = time.time()
                run.peak_bytes = run.before_bytes
            elif run.healing_began is not None and "healing" not in line:
                run.healing_ended = True
            if told := re.search(r"\] (\d+)%", line):
                run.share = int(told[1]) / 100
            if kill_at is not None and run.share >= kill_at:
                process.kill()
                run.killed = True
                break
        process.stderr.close()
        process.wait()
    finally:
        done.set()
        sampler.join()
    run.seconds = time.monotonic() - started
    if process.returncode and not run.killed:
        raise SystemExit(f"the compile failed:\n{''.join(lines[-20:])}")
    return run


def _killed(process: subprocess.Popen[str], folder: Path, share: float) -> Kill:
    run = watch(process, share)
    killed_at = time.time()
    if not run.killed:
        raise SystemExit(f"it ended before {share:.0%} of its budget was spent: give more minutes")
    assert run.healing_began is not None
    (work,) = (folder / "work").glob("healing/*")
    clock = (work / "seconds.json").stat().st_mtime
    kept = [path.stat().st_mtime for path in work.rglob("*.pt")]
    return Kill(
        run.share,
        killed_at - max([run.healing_began, *kept]),
        killed_at - max(run.healing_began, clock),
        run.healing_bytes / 1e6,
    )


def _record(folder: Path) -> dict[str, Any]:
    """Where a compile ended: what healing did, and the cosine of the outputs."""
    report = json.loads((folder / "artifact" / "report.json").read_text(encoding="utf-8"))
    last = report["passes"][-1]
    names = ("seconds", "steps", "tokens", "unit", "start", "end", "resumed", "stopped_early")
    return {name: last["healing"][name] for name in names} | {
        "mean_cosine": last["evidence"]["fidelity"]["mean_cosine"]
    }


def markdown(result: dict[str, Any]) -> str:
    """The page."""
    machine, killed, whole = result["machine"], result["killed"], result["whole"]
    lines = [
        "# A healing that is killed and goes on",
        "",
        f"{machine['processor']}; {machine['threads']} threads used. all-MiniLM-L6-v2, `{result['passes']}`, "
        f"{result['heal_minutes']:g} minutes of healing, `memory={result['memory_budget_mb']}` megabytes.",
        "",
        "| kill at, of the budget | seconds of work lost | seconds not counted | healing MB |",
        "| --- | --- | --- | --- |",
        *(
            f"| {one['share']:.0%} | {one['seconds_of_work_lost']:.1f} | {one['seconds_not_counted']:.1f} "
            f"| {one['healing_mb']:.0f} |"
            for one in result["kills"]
        ),
        "",
        f"| run | seconds | steps | held-out {whole['unit']}, start | end | mean cosine |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {one['seconds']:.0f} | {one['steps']} | {one['start']:.4g} | {one['end']:.4g} "
            f"| {one['mean_cosine']:.4f} |"
            for name, one in ((f"killed {len(result['kills'])} times", killed), ("unkilled", whole))
        ),
        "",
        f"Resident memory while it heals, above that before: at most {result['peak_healing_mb']:.0f} MB.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
