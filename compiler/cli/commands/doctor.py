"""`compile doctor`: what is installed here, and what is missing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from compiler import __version__
from compiler.cli.answer import Answer
from compiler.cli.shared import SHARED, Shared

if TYPE_CHECKING:
    from rich.console import RenderableType

PACKAGES = {
    "running artifacts": ("numpy", "onnxruntime", "tokenizers"),
    "compiling": ("torch", "transformers", "safetensors", "onnx", "onnxscript", "onnx_ir", "tomli_w", "jinja2"),
    "reading .gguf files": ("gguf", "accelerate"),
    "serving": ("starlette", "uvicorn"),
    "the command": ("cyclopts", "rich", "pluggy"),
}
NOTABLE_INSTRUCTIONS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


def doctor(*, shared: Shared = SHARED) -> Answer:
    """Show versions, the machine, and the plugins found and left out."""
    with shared.terminal.working("looking around"):
        document = {"regraft": __version__, "machine": _machine(), "packages": _packages(), "plugins": _plugins(shared)}
    return Answer(document, tuple(_shown(document)))


def _machine() -> dict[str, Any]:
    import platform

    from compiler.runtime.processor import processor_instructions

    present = processor_instructions()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
        "instructions": None if present is None else [name for name in NOTABLE_INSTRUCTIONS if name in present],
    }


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _packages() -> dict[str, dict[str, str | None]]:
    return {purpose: {name: _version(name) for name in names} for purpose, names in PACKAGES.items()}


def _version(package: str) -> str | None:
    """The installed version without importing the package, or None."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    if find_spec(package) is None:
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown version"


def _plugins(shared: Shared) -> dict[str, Any]:
    if _version("torch") is None:
        return {"found": [], "left_out": ["all: torch is not installed"], "commands": []}
    from cyclopts import App

    from compiler.registry import Registry

    registry = Registry(shared.plugin)
    found = sorted(name for name, _ in registry.manager.list_name_plugin())
    probe = App()
    own = set(probe)
    registry.manager.hook.add_commands(app=probe)
    return {"found": found, "left_out": registry.warnings, "commands": sorted(set(probe) - own)}


def _shown(document: dict[str, Any]) -> list[RenderableType]:
    from compiler.cli.terminal import line, table

    machine = document["machine"]
    instructions = machine["instructions"]
    memory = machine["memory_bytes"]
    facts = [
        ("regraft", document["regraft"]),
        ("python", f"{machine['python']} on {machine['system']}, {machine['architecture']}"),
        ("cores", str(machine["cores"])),
        ("memory", "unknown" if memory is None else f"{memory / 1e9:.1f} GB"),
        ("instructions", "unknown" if instructions is None else ", ".join(instructions) or "none of note"),
    ]
    packages = [
        (purpose, name, version or "not installed")
        for purpose, versions in document["packages"].items()
        for name, version in versions.items()
    ]
    plugins = document["plugins"]
    rows = [(name, "found") for name in plugins["found"]] + [(one, "left out") for one in plugins["left_out"]]
    shown: list[RenderableType] = [
        table(("", ""), facts), table(("for", "package", "version"), packages), table(("plugin", ""), rows)
    ]  # fmt: skip
    return [*shown, line(f"commands of plugins: {', '.join(plugins['commands']) or 'none'}")]
