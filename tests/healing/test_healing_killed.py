"""A healing that is killed three times loses little each time, and ends as one that was not."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROCESS_SECONDS = 240
BUDGET = 12.0
SLACK = 2.0
"""Seconds between the last message that a process got out and its end, on a busy machine."""
HEALS = """
    import json, sys
    from dataclasses import replace
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from healing_models import AddNoise, healing_context, tiny_program
    from compiler.pipeline import Pipeline
    from compiler.healing.plan import HealingPlan
    context = healing_context(Path(sys.argv[1]), minutes=float(sys.argv[3]) / 60)
    plan = replace(context.healing, clock=__import__("time").monotonic)
    context = replace(context, healing=plan, progress=lambda message: print(message, flush=True))
    _, _, (record,) = Pipeline([AddNoise()], context).run(tiny_program())
    healing, fidelity = record.result.healing, record.evidence.fidelity
    print(json.dumps({**healing.to_json(), "kl": fidelity.kl_divergence}), flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(HEALS), str(folder), str(Path(__file__).parent), str(BUDGET)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told_share(line: str) -> float | None:
    """Which share of the budget a message says is spent."""
    found = re.search(r"\] (\d+)%", line)
    return int(found[1]) / 100 if found else None


def test_three_kills_cost_little(tmp_path: Path) -> None:
    moments = random.Random(1)
    shares = [moments.uniform(low, low + 0.2) for low in (0.1, 0.4, 0.7)]
    kept = 0.0
    for share in shares:
        process = start(tmp_path / "killed")
        assert process.stdout is not None
        told = 0.0
        for line in process.stdout:
            told = told_share(line) or told
            if told >= share:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PROCESS_SECONDS)
        (file,) = (tmp_path / "killed").glob("healing/*/seconds.json")
        before, kept = kept, float(json.loads(file.read_text(encoding="ascii")))
        assert kept > before
        assert kept >= told * BUDGET - 0.1 * BUDGET - SLACK
    results = []
    for folder in ("killed", "whole"):
        started = time.monotonic()
        with start(tmp_path / folder) as finishing:
            output, _ = finishing.communicate(timeout=PROCESS_SECONDS)
        results.append(json.loads(output.splitlines()[-1]))
        assert time.monotonic() - started < PROCESS_SECONDS
    killed, whole = results
    assert killed["resumed"]
    assert not whole["resumed"]
    for one in results:
        assert BUDGET - 1 <= one["seconds"] <= BUDGET + 4
        assert one["end"] < one["start"] / 10
    assert killed["kl"] < 5 * whole["kl"] + 1e-3
