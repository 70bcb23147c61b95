"""What a processor is said to have, on systems that say it in different words or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.runtime.processor import missing_instructions, processor_instructions

INTEL = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512_vnni\n\nprocessor\t: 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("text", "needed", "missing"),
    [
        (INTEL, ("avx2", "avx512_vnni"), ()),
        (INTEL, ("avx2", "amx_int8", "sse2"), ("amx_int8",)),
        (ARM, ("asimddp",), ()),
        (ARM, ("avx2",), ("avx2",)),
        ("processor : 0\n", ("avx2",), ()),
    ],
)
def test_missing_instructions(tmp_path: Path, text: str, needed: tuple[str, ...], missing: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert missing_instructions(needed, tmp_path / "cpuinfo") == missing


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert processor_instructions(tmp_path / "none") is None
    assert missing_instructions(["avx2"], tmp_path / "none") == ()
