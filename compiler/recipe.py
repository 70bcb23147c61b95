"""What to do to a model, as text: `name:key=value:key=value,...` on the command line, or the same as a TOML recipe.

A recipe that an artifact carries reproduces the artifact.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler import options
from compiler.errors import CompilerError, nearest_hint
from compiler.healing.options import HealingOptions, healing_options

if TYPE_CHECKING:
    from compiler.rewriting import Pass


@dataclass(frozen=True)
class PassSpec:
    """A pass by name with option values as they were written."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{key}={_option_text(value)}" for key, value in self.options.items())])


@dataclass(frozen=True)
class Recipe:
    """All that a compile depends on besides the model's own bytes."""

    model: str = ""
    passes: tuple[PassSpec, ...] | None = None
    backend: str = "onnx_runtime"
    target: str = "cpu"
    data: str | None = None
    max_drop: float | None = None
    seed: int = 0
    inputs: tuple[str, ...] = ()
    heal: HealingOptions | None = None
    allow_simulated: bool = False
    budget: tuple[str, ...] = ()
    """Limits as --budget says them. Once passes are built they hold them, and so do the recipes of artifacts."""

    def text(self) -> str:
        """The recipe as TOML."""
        import tomli_w

        from compiler import __version__

        values: dict[str, Any] = {"regraft": __version__}
        for name in ("model", "backend", "target", "data", "max_drop", "seed"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        if self.inputs:
            values["inputs"] = list(self.inputs)
        if self.heal is not None:
            values["heal"] = self.heal.values()
        if self.allow_simulated:
            values["allow_simulated"] = True
        passes = self.passes or ()
        values["passes"] = [
            {
                "name": spec.name,
                **{k: list(v) if isinstance(v, tuple) else v for k, v in spec.options.items() if v is not None},
            }
            for spec in passes
        ]
        return tomli_w.dumps(values)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a TOML recipe. Raises CompilerError that names what is wrong in it."""
        doing = f"reading recipe {path}"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CompilerError(
                doing, "there is no such file", "An artifact holds its recipe as recipe.toml."
            ) from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CompilerError(
                doing, f"it is not a readable TOML file ({error})", "Compare it with an artifact's recipe.toml."
            ) from None
        values.pop("regraft", None)
        known: dict[str, tuple[type, ...]] = {
            "model": (str,), "backend": (str,), "target": (str,), "data": (str,), "max_drop": (float, int),
            "seed": (int,), "inputs": (list,), "passes": (list,), "heal": (dict, float, int),
            "allow_simulated": (bool,), "budget": (list,),
        }  # fmt: skip
        for name, value in values.items():
            if name not in known:
                raise CompilerError(
                    doing, f"there is no key {name!r}", nearest_hint(name, known, f"Keys: {', '.join(known)}.")
                )
            if not isinstance(value, known[name]) or isinstance(value, bool) != (known[name] == (bool,)):
                raise CompilerError(
                    doing, f"{name} = {value!r} has the wrong type", f"It should be {known[name][0].__name__}."
                )
        if "passes" in values:
            values["passes"] = tuple(_pass_from_table(doing, table) for table in values["passes"])
        for name in ("inputs", "budget"):
            if name in values:
                values[name] = tuple(str(item) for item in values[name])
        if "heal" in values:
            given = values["heal"]
            values["heal"] = healing_options(doing, given if isinstance(given, dict) else {"minutes": given})
        return cls(**values)


def parse_passes(text: str) -> tuple[PassSpec, ...]:
    """Read `fuse,quantize:bits=4:group=32`. Raises CompilerError with the piece that cannot be read."""
    specs = []
    for piece in text.split(","):
        name, *pairs = piece.strip().split(":")
        if not name:
            if not text.strip():
                continue
            raise CompilerError(f"reading --passes {text!r}", "a pass name is missing", "Write name:key=value,name,...")
        values: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or not key:
                hint = f"Write {name}:{pair or 'key'}=value."
                raise CompilerError(f"reading --passes {text!r}", f"{pair!r} is not key=value", hint)
            if key in values:
                raise CompilerError(f"reading --passes {text!r}", f"{key!r} is given twice", "Keep one of the two.")
            values[key] = value
        specs.append(PassSpec(name, values))
    return tuple(specs)


def build_passes(
    specs: tuple[PassSpec, ...], known: Mapping[str, type[Pass]], pipelines: Mapping[str, str]
) -> list[Pass]:
    """Instances of the named passes, and before each those that it requires. Nothing has run by then.

    A pipeline name stands for the passes of its text.
    """
    built: list[Pass] = []
    for spec in specs:
        if spec.name in known:
            for required in parse_passes(",".join(known[spec.name].requires)):
                ran = {one.name for one in built}
                built.extend(one for one in build_passes((required,), known, pipelines) if one.name not in ran)
            built.append(options.build(known[spec.name], spec.options))
        elif spec.name in pipelines:
            if spec.options:
                raise CompilerError(
                    f"reading pass {spec}",
                    f"{spec.name} is a pipeline and has no options",
                    "Name its passes one by one.",
                )
            inner = {name: text for name, text in pipelines.items() if name != spec.name}
            built.extend(build_passes(parse_passes(pipelines[spec.name]), known, inner))
        else:
            names = [*known, *pipelines]
            raise CompilerError(
                "reading --passes",
                f"there is no pass {spec.name!r}",
                nearest_hint(spec.name, names, "See: compile passes"),
            )
    return built


def spec_of(one: Pass) -> PassSpec:
    """The spec that builds `one` again, with every option spelled out."""
    from compiler.rewriting import option_values

    return PassSpec(one.name, option_values(one))


def _pass_from_table(doing: str, table: Any) -> PassSpec:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise CompilerError(doing, f"{table!r} is no pass", 'Write [[passes]] with name = "...".')
    return PassSpec(table["name"], {key: value for key, value in table.items() if key != "name"})


def _option_text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "+".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
