"""JSON read into dataclasses, strictly: the dataclass is the schema.

An unknown key, a missing key, a wrong type, a duplicate key, NaN, or text that is no JSON is a CompilerError that
says where.
"""

from __future__ import annotations

import json
import math
import reprlib
import sys
import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Never, TypeVar

Built = TypeVar("Built")

_SHORT = reprlib.Repr()  # values come from strangers: they may be long, or nested too deeply for repr
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60

WORDS: dict[type, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class MalformedJsonError(ValueError):
    """What is wrong with a document and where, as in `inputs[0].shape: expected a list, found 3`."""


def parse_json(text: str) -> Any:
    """The value of a JSON text without duplicate keys, NaN or infinities. Raises MalformedJsonError."""
    try:
        return json.loads(text, object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant)
    except MalformedJsonError:
        raise
    except RecursionError:
        raise MalformedJsonError("it is nested too deeply") from None
    except ValueError as error:
        raise MalformedJsonError(f"it is not JSON: {error}") from None


def build(kind: type[Built], value: Any, where: str = "") -> Built:
    """Check parsed JSON against the type `kind` and build it. Raises MalformedJsonError.

    `kind` is a dataclass, or one of the types its fields may have: str, int, float, bool, None, `X | Y`, `tuple[X,
    ...]`, `dict[str, X]`.
    """
    return typing.cast(Built, _build(kind, value, where))


def to_json(value: Any) -> Any:
    """The plain dicts, lists and scalars of a dataclass; the reverse of `build`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form")
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _build_union(arguments, value, where)
    if is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is tuple:
        _expect(isinstance(value, list), "a list", value, where)
        return tuple(_build(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), "an object", value, where)
        return {key: _build(arguments[1], item, _inside(where, key)) for key, item in value.items()}
    if kind is type(None):
        _expect(value is None, "null", value, where)
        return value
    return _build_scalar(kind, value, where)


def _build_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        _expect(abs(value) <= sys.float_info.max, "a smaller number", value, where)
        return float(value)
    _expect(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), WORDS[kind], value, where)
    return value


def _build_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for kind in kinds:
        if kind is float and isinstance(value, int) and int in kinds:
            continue
        try:
            return _build(kind, value, where)
        except MalformedJsonError as problem:
            problems.append(str(problem))
    raise MalformedJsonError("; or ".join(dict.fromkeys(problems)))


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), "an object", value, where)
    known = _fields(kind)
    for key in value:
        if key not in known:
            raise MalformedJsonError(f"{_inside(where, key)}: there is no such entry")
    built = {}
    for name, (hint, field) in known.items():
        if name in value:
            built[name] = _build(hint, value[name], _inside(where, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise MalformedJsonError(f"{_inside(where, name)}: it is missing")
    return kind(**built)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, Field[Any]]]:
    hints = typing.get_type_hints(kind)
    return {field.name: (hints[field.name], field) for field in fields(kind)}


def _expect(holds: bool, expected: str, value: Any, where: str) -> None:
    if not holds:
        raise MalformedJsonError(f"{where or 'the document'}: expected {expected}, found {_SHORT.repr(value)[:60]}")


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedJsonError("an entry is given twice")
    return found


def _refuse_constant(name: str) -> Never:
    raise MalformedJsonError(f"{name} is no number that JSON knows")
