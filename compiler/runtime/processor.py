"""What instructions this machine's processor has, in the words of Linux's /proc/cpuinfo."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_instructions(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """The flags of the first processor, or None where the system does not say."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None


def missing_instructions(needed: Iterable[str], cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """Those of `needed` that this processor lacks; none where the system does not say what it has."""
    present = processor_instructions(cpuinfo)
    return () if present is None else tuple(name for name in needed if name not in present)
