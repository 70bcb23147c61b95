"""Options of passes: typed dataclass fields, read from text or TOML and checked before anything runs.

A pass declares `bits: Annotated[Literal[8, 4], "bits of a weight"] = 8`; the first string of the annotation is its help
text.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from compiler.errors import CompilerError, nearest_hint


@dataclass(frozen=True)
class Option:
    """One option as people see it: its name, type in words, default and help."""

    name: str
    type_name: str
    default: Any
    help: str


def options_of(cls: type[Any]) -> list[Option]:
    """The options of a pass class in the order they are declared."""
    hints = get_type_hints(cls, include_extras=True)
    listed = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        help_text = next((extra for extra in extras if isinstance(extra, str)), "")
        listed.append(Option(field.name, _type_name(_bare(hint)), _default(field), help_text))
    return listed


def build(cls: type[Any], values: Mapping[str, Any], *, doing: str = "", hint: str = "") -> Any:
    """An instance of pass class `cls`, or of another dataclass of options, with options from text or TOML values.

    Raises CompilerError for an option that does not exist or a value of the wrong type, with the nearest right one;
    `doing` and `hint` are its words where it is about no pass.
    """
    doing = doing or f"reading the options of pass {cls.name!r}"
    hints = get_type_hints(cls, include_extras=True)
    known = [field.name for field in dataclasses.fields(cls)]
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            listed = f"Its options: {', '.join(known)}." if known else "It has no options."
            raise CompilerError(doing, f"there is no option {name!r}", nearest_hint(name, known, listed))
        converted[name] = _convert(doing, name, value, _bare(hints[name]))
    required = [
        f.name for f in dataclasses.fields(cls) if _default(f) is dataclasses.MISSING and f.name not in converted
    ]
    if required:
        hint = hint or f"Write {cls.name}:{required[0]}=..."
        raise CompilerError(doing, f"option {required[0]!r} is needed", hint)
    try:
        return cls(**converted)
    except ValueError as error:  # a pass checks combinations in __post_init__
        raise CompilerError(doing, str(error), hint or f"See: compile passes {cls.name}") from error


def _convert(doing: str, name: str, value: Any, hint: Any) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        return _convert_literal(doing, name, value, get_args(hint))
    if origin in (Union, types.UnionType):
        return _convert_union(doing, name, value, get_args(hint))
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [item for item in str(value).split("+") if item]
        return tuple(_convert(doing, name, item, get_args(hint)[0]) for item in items)
    try:
        return _convert_plain(value, hint)
    except ValueError:
        hint_text = f"Write {name}={_EXAMPLES.get(hint, '...')} or the like."
        raise CompilerError(doing, f"{name}={value} is not {_type_name(hint)}", hint_text) from None


def _convert_plain(value: Any, hint: Any) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if str(value).lower() not in words:
            raise ValueError(value)
        return words[str(value).lower()]
    if hint in (int, float) and isinstance(value, bool):
        raise ValueError(value)
    if hint is int and isinstance(value, float):
        raise ValueError(value)
    if hint is float:
        number = float(value)
        if number != number:
            raise ValueError(value)
        return number
    return hint(value)


def _convert_literal(doing: str, name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if (value == choice and type(value) is type(choice)) or str(value) == str(choice):
            return choice
    listed = [str(choice) for choice in choices]
    hint = nearest_hint(str(value), listed, f"One of: {', '.join(listed)}.")
    raise CompilerError(doing, f"{name}={value} is none of {', '.join(listed)}", hint)


def _convert_union(doing: str, name: str, value: Any, members: tuple[Any, ...]) -> Any:
    if type(None) in members and (value is None or str(value).lower() == "none"):
        return None
    plain = [member for member in members if member is not type(None)]
    for member in plain[:-1]:
        try:
            return _convert(doing, name, value, member)
        except CompilerError:
            continue
    return _convert(doing, name, value, plain[-1])


_EXAMPLES: dict[Any, str] = {int: "4", float: "0.5", bool: "true", str: "text"}
_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _type_name(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return " | ".join(str(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join("none" if member is type(None) else _type_name(member) for member in get_args(hint))
    if origin is tuple:
        return f"{_type_name(get_args(hint)[0])}, joined by +"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return dataclasses.MISSING
