"""Values that hold tensors: a tensor, a sequence of values (a list), an absent optional (None), known numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The value with its tensors replaced, in order."""
    if isinstance(value, Tensor):
        return next(tensors)
    return [with_tensors(item, tensors) for item in value] if isinstance(value, (list, tuple)) else value


def structure(value: Any) -> Any:
    """Dtypes and ranks of the tensors in a value: values of one structure can stand for each other."""
    if isinstance(value, Tensor):
        return (value.dtype, value.dim())
    return [structure(item) for item in value] if isinstance(value, (list, tuple)) else type(value)


def names_of(name: str, value: Any) -> dict[str, Any]:
    """What a value holds by name: itself, the items of a sequence as `name_0`, `name_1`, ..., nothing of None."""
    if isinstance(value, (list, tuple)):
        return {key: one for index, item in enumerate(value) for key, one in names_of(f"{name}_{index}", item).items()}
    return {} if value is None else {name: value}
