"""Finds every plugin, built in or not, and answers what is registered under a name.

Every module in compiler.passes, backends, frontends, evidence.probes, quantization.formats and plugins is a plugin; so
is every entry point of group `regraft` and every file given by --plugin. All use the hooks of `compiler.hookspecs`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from compiler import hookspecs
from compiler.errors import CompilerError, nearest_hint

if TYPE_CHECKING:
    from compiler.backend import Backend
    from compiler.evidence import Probe
    from compiler.frontends import Frontend
    from compiler.mixers import Mixer
    from compiler.quantization.formats import WeightFormat
    from compiler.rewriting import Pass

BUILT_IN = (
    "compiler.passes",
    "compiler.backends",
    "compiler.frontends",
    "compiler.evidence.probes",
    "compiler.quantization.formats",
    "compiler.plugins",
)


class Registry:
    """The plugins of one run. `warnings` holds a line for each third-party plugin that failed to import."""

    def __init__(self, plugin_files: Iterable[Path] = (), *, built_in: bool = True, entry_points: bool = True) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.warnings: list[str] = []
        if built_in:
            for package in BUILT_IN:
                for module in _modules_of(package):
                    self.manager.register(module, module.__name__)
        if entry_points:
            self._load_entry_points()
        for path in plugin_files:
            module = _load_file(path)
            self.manager.register(module, str(path))
        self.manager.check_pending()

    def passes(self) -> dict[str, type[Pass]]:
        """Pass classes by name, sorted."""
        return self._collect("register_passes", "pass")

    def backends(self) -> dict[str, type[Backend]]:
        """Backend classes by name, sorted."""
        return self._collect("register_backends", "backend")

    def frontends(self) -> dict[str, type[Frontend]]:
        """Frontend classes by name, sorted."""
        return self._collect("register_frontends", "frontend")

    def probes(self) -> dict[str, type[Probe]]:
        """Probe classes by name, sorted."""
        return self._collect("register_probes", "probe")

    def mixers(self) -> dict[str, type[Mixer]]:
        """Mixer classes by name, sorted."""
        return self._collect("register_mixers", "mixer")

    def formats(self) -> dict[str, type[WeightFormat]]:
        """Weight formats by name, sorted."""
        return self._collect("register_formats", "format")

    def pipelines(self) -> dict[str, str]:
        """Named pipelines. A family of rewrites, such as `fuse`, is one unless a plugin registers that name."""
        found: dict[str, str] = {}
        for cls in self.passes().values():
            if cls.family:
                found[cls.family] = f"{found[cls.family]},{cls.name}" if cls.family in found else cls.name
        for registered in self.manager.hook.register_pipelines():
            found.update(registered)
        return dict(sorted(found.items()))

    def backend(self, name: str) -> Backend:
        """An instance of the named backend. Raises CompilerError with the nearest name."""
        known = self.backends()
        if name not in known:
            hint = nearest_hint(name, known, f"Backends: {', '.join(known)}.")
            raise CompilerError("choosing a backend", f"there is no backend {name!r}", hint)
        return known[name]()

    def _collect(self, hook: str, what: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            for cls in implementation.function():
                known = found.get(cls.name)
                if known is not None and known is not cls:
                    problem = f"two of them are named {cls.name!r}: {_file_of(known)} and {_file_of(cls)}"
                    raise CompilerError(f"registering a {what}", problem, "Rename one, or leave one plugin out.")
                found[cls.name] = cls
        return dict(sorted(found.items()))

    def _load_entry_points(self) -> None:
        for entry in importlib.metadata.entry_points(group=hookspecs.PROJECT):
            try:
                self.manager.register(entry.load(), entry.name)
            except Exception as error:  # a third party's import can raise anything, and must not stop the compiler
                self.warnings.append(
                    f"plugin {entry.name} ({entry.value}) was left out: {type(error).__name__}: {error}"
                )


def _modules_of(package_name: str) -> Iterator[ModuleType]:
    """The package and the plugins in it. A folder whose `__init__` has hooks is one plugin, and is not searched."""
    package = importlib.import_module(package_name)
    yield package
    for info in pkgutil.iter_modules(package.__path__, f"{package_name}."):
        if info.ispkg and not _has_hooks(importlib.import_module(info.name)):
            yield from _modules_of(info.name)
        elif _has_hooks(module := importlib.import_module(info.name)):
            yield module


def _has_hooks(module: ModuleType) -> bool:
    return any(
        hasattr(value, f"{hookspecs.PROJECT}_impl") for value in vars(module).values() if inspect.isfunction(value)
    )


def _load_file(path: Path) -> ModuleType:
    doing = f"loading plugin {path}"
    if not path.is_file():
        raise CompilerError(
            doing, "there is no such file", "Give the path of a Python file; `compile new-plugin NAME` writes one."
        )
    name = f"regraft_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CompilerError(doing, "it is not a Python file", "A plugin file ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is theirs to mend
        del sys.modules[name]
        line = _failing_line(error, path)
        raise CompilerError(
            doing, f"it raised {type(error).__name__}: {error}{line}", "Run the file with python to see the traceback."
        ) from error
    if not _has_hooks(module):
        hint = "Add: @hookimpl def register_passes(): return [YourPass]"
        raise CompilerError(doing, "it implements no hook", hint)
    return module


def _failing_line(error: BaseException, path: Path) -> str:
    trace = error.__traceback__
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


def _file_of(cls: type[Any]) -> str:
    try:
        return inspect.getfile(cls)
    except TypeError:
        return cls.__module__
