"""What an artifact is to run on, as one frozen value parsed from text such as `cpu:x86-64-v4` or `cuda:sm_90`."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from compiler.errors import CompilerError, nearest_hint


@dataclass(frozen=True)
class Target:
    """A device family and, where it matters, the exact architecture.

    `name` is the text before the colon, `architecture` the text after it ("" for the family's default).
    """

    name: str
    architecture: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.architecture}" if self.architecture else self.name

    @property
    def description(self) -> str:
        """One line for people."""
        return TARGETS[self.name].description

    @property
    def is_host(self) -> bool:
        """Whether what is built for this target can be run and timed on this machine."""
        if self.name == "cpu":
            return True
        return self.name == f"linux-{platform.machine()}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `name` or `name:architecture`. Raises CompilerError with the nearest known name."""
        name, _, architecture = text.strip().partition(":")
        if name not in TARGETS:
            hint = nearest_hint(name, TARGETS, f"Known targets: {', '.join(TARGETS)}.")
            raise CompilerError(f"reading target {text!r}", f"there is no target {name!r}", hint)
        known = TARGETS[name].architectures
        if architecture and architecture not in known:
            listed = ", ".join(known) if known else "none"
            hint = nearest_hint(architecture, known, f"Architectures of {name}: {listed}.")
            raise CompilerError(f"reading target {text!r}", f"{name} has no architecture {architecture!r}", hint)
        return cls(name, architecture)


@dataclass(frozen=True)
class TargetFamily:
    """What a family of devices is called and the architectures that may be named in it."""

    description: str
    architectures: tuple[str, ...] = ()


TARGETS: dict[str, TargetFamily] = {
    "cpu": TargetFamily("this kind of machine's processor", ("x86-64-v2", "x86-64-v3", "x86-64-v4", "armv8", "armv9")),
    "linux-x86_64": TargetFamily("a 64-bit Intel or AMD machine with Linux", ("x86-64-v2", "x86-64-v3", "x86-64-v4")),
    "linux-aarch64": TargetFamily("a 64-bit Arm board or server with Linux", ("armv8", "armv9")),
    "wasm": TargetFamily("a web browser or other WebAssembly host"),
    "cuda": TargetFamily("an NVIDIA GPU", ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")),
    "rocm": TargetFamily("an AMD GPU", ("gfx90a", "gfx942", "gfx950")),
}
