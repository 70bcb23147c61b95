"""Names for what a module returns: tensors out of tensors, tuples, dicts and dataclasses, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def named_tensors(returned: Any) -> dict[str, Tensor]:
    """The tensors in `returned` by name: dict keys and field names; `output`, `output_1`, ... where nothing is named.

    A tuple under a key is counted: `hidden_states_0`, `hidden_states_1`. What is no tensor is left out.
    """
    named: dict[str, Tensor] = {}
    for wanted, tensor in _tensors(returned, ""):
        name, count = wanted or "output", 0
        while name in named:
            count += 1
            name = f"{wanted or 'output'}_{count}"
        named[name] = tensor
    return named


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, _joined(name, str(key)))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key in value._fields:
            yield from _tensors(getattr(value, key), _joined(name, key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _tensors(item, _joined(name, str(index)) if name else "")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name), _joined(name, field.name))


def _joined(name: str, part: str) -> str:
    return f"{name}_{part}" if name else part
