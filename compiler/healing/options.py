"""What `--heal 15:optimizer=muon:lora=8` says, and the same as a table of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from compiler import options
from compiler.errors import CompilerError

MEGABYTE = 10**6
DOING = "reading --heal"
HINT = "Write --heal MINUTES or --heal MINUTES:optimizer=muon:lora=8."


@dataclass(frozen=True)
class HealingOptions:
    """How long grafts are healed, and how."""

    minutes: Annotated[float, "wall time in all, resumed runs included"]
    optimizer: Annotated[Literal["adamw", "muon"], "of the last stage; muon for matrices, adamw for the rest"] = "adamw"
    lora: Annotated[int, "rank of the changes to layers around grafted sites; 0: they stay as they are"] = 16
    rate: Annotated[float, "largest learning rate of the last stage; narrow models take more"] = 1e-3
    guided: Annotated[
        bool, "let the originals of grafted sites fade out while their stand-ins learn, for half of the last stage"
    ] = False
    memory: Annotated[int, "megabytes that training may take on top of the model"] = 4096
    disk: Annotated[int, "megabytes of activations that are kept while sites are healed"] = 2048

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 7 * 24 * 60:
            raise ValueError(f"{self.minutes:g} minutes are not between 0 and a week")
        if not 0 < self.rate <= 1:
            raise ValueError(f"a learning rate of {self.rate:g} is not above 0 and at most 1")
        if not 0 <= self.lora <= 256:
            raise ValueError(f"a LoRA rank of {self.lora} is not from 0 to 256")
        if self.memory < 64 or self.disk < 1:
            raise ValueError("it needs at least 64 megabytes of memory and one of disk")

    @property
    def seconds(self) -> float:
        """The budget."""
        return self.minutes * 60

    def values(self) -> dict[str, Any]:
        """As plain values, for a recipe."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def parse_healing(text: str) -> HealingOptions:
    """Read `15` or `15:optimizer=muon`. Raises CompilerError with what is wrong in it."""
    first, *pairs = text.split(":")
    values: dict[str, Any] = {} if "=" in first else {"minutes": first}
    for pair in pairs if values else [first, *pairs]:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CompilerError(f"{DOING} {text}", f"{pair!r} is not key=value", HINT)
        if key in values:
            raise CompilerError(f"{DOING} {text}", f"{key!r} is given twice", "Keep one of the two.")
        values[key] = value
    return healing_options(f"{DOING} {text}", values)


def healing_options(doing: str, values: Mapping[str, Any]) -> HealingOptions:
    """Options from text or TOML values. Raises CompilerError for what they cannot be."""
    built: HealingOptions = options.build(HealingOptions, values, doing=doing, hint=HINT)
    return built
