"""The list of backend cases that fail, kept in known_failures.json, and the check that it is true: no more, no fewer.

    python tests/frontends/onnx_model/known_failures.py

runs every case and writes the list anew; reasons that stand in it stay.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from backend_cases import STAGES, cases, outcomes

LIST = Path(__file__).with_name("known_failures.json")
"""By stage and case name, why it fails."""
BY_CHANCE = "random numbers"
"""How reasons begin of cases that fail but for luck."""


def known_failures() -> dict[str, dict[str, str]]:
    """The list."""
    read: dict[str, dict[str, str]] = json.loads(LIST.read_text(encoding="utf-8"))
    return read


def differences(kind: str, wanted: Callable[[str], bool]) -> list[str]:
    """What the list says and running the cases does not, or the other way round."""
    known = known_failures()
    wrong = []
    for name, case in cases(kind).items():
        if not wanted(name):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and numpy warn of the odd numbers that some cases hold
            failed = outcomes(case)
        for stage in STAGES:
            if stage in failed and name not in known[stage]:
                wrong.append(f"{name} ({stage}) fails: {failed[stage]}")
            if stage not in failed and name in known[stage] and not known[stage][name].startswith(BY_CHANCE):
                wrong.append(f"{name} ({stage}) passes: take it from the list")
    return wrong


def main() -> int:
    """Write the list."""
    warnings.simplefilter("ignore")
    before = known_failures() if LIST.exists() else {stage: {} for stage in STAGES}
    after: dict[str, dict[str, str]] = {stage: {} for stage in STAGES}
    total = 0
    for name, case in cases("node").items():
        total += 1
        for stage, reason in outcomes(case).items():
            after[stage][name] = before[stage].get(name, reason)
    LIST.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for stage in STAGES:
        print(f"{stage}: {total - len(after[stage])} of {total} pass ({1 - len(after[stage]) / total:.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
