"""Known: a value whose items are known while a model is read, as Python numbers and symbolic ints.

ONNX computes shapes with tensors. Read so, every shape would depend on data, and neither export nor training could
follow. Here `Shape` gives a Known, and arithmetic, slicing and joining of Knowns gives Knowns; only where an operator
needs a tensor does one become a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Size = int | torch.SymInt
LARGEST_FOLDED = 4096
"""Items up to which values are computed while reading."""


class Known:
    """An array of numbers that are known while reading: plain ones, or symbolic ones (SymInt, SymFloat, SymBool).

    `array` is a numpy array, of Python objects where an item is symbolic; it may be given as a tensor of a dtype that
    numpy lacks. `dtype` is what a tensor of it would have.
    `weight` is the dotted name under which the module keeps the same numbers as a tensor, or none.
    """

    def __init__(self, array: Any, dtype: torch.dtype, weight: str | None = None) -> None:
        self._held = array if isinstance(array, (np.ndarray, Tensor)) else object_array(array)
        self.dtype = dtype
        self.weight = weight

    @classmethod
    def of(cls, items: Any, dtype: torch.dtype = torch.int64) -> Known:
        """A Known of a number (rank 0) or a flat sequence of numbers (rank 1)."""
        return cls(object_array(items), dtype)

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """The numbers. Those of a tensor in a dtype that numpy lacks are float32 here, made when they are asked for."""
        if isinstance(self._held, Tensor):
            self._held = self._held.detach().float().numpy()
        return self._held

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's sizes, which are never symbolic."""
        return tuple(self._held.shape)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @property
    def is_plain(self) -> bool:
        """Whether every item is an ordinary number."""
        return (
            isinstance(self._held, Tensor)
            or self.array.dtype != object
            or not any(is_symbolic(item) for item in self.array.flat)
        )

    def objects(self) -> np.ndarray[Any, Any]:
        """The array with Python numbers as items: float32's 0.1 becomes the float nearest to it."""
        if self.array.dtype == object:
            return self.array
        numbers = np.empty(self.array.shape, dtype=object)
        kind = bool if self.dtype == torch.bool else float if self.dtype.is_floating_point else int
        for index, item in np.ndenumerate(self.array):
            numbers[index] = kind(item)
        return numbers

    def items(self) -> list[Any]:
        """All items in row-major order."""
        return list(self.objects().flat)

    def item(self) -> Any:
        """The only item. Raises ValueError where there is another number of them."""
        if self.size != 1:
            raise ValueError(f"one number is needed, and there are {self.size}")
        return self.items()[0]

    def sizes(self) -> list[Size]:
        """All items as sizes."""
        return [item if isinstance(item, torch.SymInt) else int(item) for item in self.items()]

    def tensor(self) -> Tensor:
        """The same numbers as a new tensor; symbolic items become operators of the graph that is being traced."""
        if self.size == 1:
            return torch.full(self.shape, self.item(), dtype=self.dtype)
        if self.is_plain:
            return torch.tensor(self.objects().tolist(), dtype=self.dtype).reshape(self.shape)
        scalars = [torch.full((), item, dtype=self.dtype) for item in self.items()]
        return torch.stack(scalars).reshape(self.shape)

    def __repr__(self) -> str:
        return f"Known({self.array.tolist()}, {self.dtype})"


def object_array(items: Any) -> np.ndarray[Any, Any]:
    """A numpy array of Python objects of rank 0 or 1; numpy alone would try to look into symbolic ints."""
    if isinstance(items, Iterable) and not isinstance(items, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        listed = list(items)
        array = np.empty(len(listed), dtype=object)
        for index, item in enumerate(listed):
            array[index] = item
        return array
    array = np.empty((), dtype=object)
    array[()] = items
    return array


def is_symbolic(item: Any) -> bool:
    """Whether an item stands for a number that is not fixed yet."""
    return isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool))
