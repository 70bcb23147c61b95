"""Whether a model can be run at all: its shapes are followed on tensors without memory before any are made.

A file of a kilobyte can ask for tensors of a hundred gigabytes. What a tensor may take is bound to what the model is
given and holds, so that large models pass and absurd ones are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compiler.errors import CompilerError
from compiler.frontends.traced_module import quiet_tracing

ALWAYS_ALLOWED_BYTES = 2**30
LARGEST_GROWTH = 256
"""How many times the bytes of inputs and weights a single result may have."""


class _LargestResult(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops at the first result of more than `limit` bytes, before it is made."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.numel() * one.element_size() > self.limit:
                raise TooLargeError(one.numel() * one.element_size())
        return result


class TooLargeError(BaseException):
    """A result would be too large. No Exception: nothing on the way may take it for an operator's failure."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def require_room(doing: str, module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Raise CompilerError when running `module` would make a result out of all proportion. Other failures are left
    to the real run.
    """
    given = sum(tensor.numel() * tensor.element_size() for tensor in inputs.values())
    held = sum(one.numel() * one.element_size() for one in (*module.parameters(), *module.buffers()))
    limit = max(ALWAYS_ALLOWED_BYTES, LARGEST_GROWTH * (given + held))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.no_grad(), quiet_tracing(), mode, _LargestResult(limit):
            module(*(mode.from_tensor(tensor) for tensor in inputs.values()))
    except TooLargeError as error:
        problem = f"a result would take {error.size / 1e9:,.1f} GB, for inputs of {given / 1e6:,.1f} MB"
        raise CompilerError(doing, problem, "State smaller inputs with --input, or check the model.") from error
    except Exception:  # not every operator can be followed without data
        return
