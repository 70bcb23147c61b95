"""Twenty-six tiny transformers architectures with random weights, and what their configurations say of their sites.

Each is built on demand with a fixed seed and captured once a session. Sizes are small and not degenerate: two layers
or more, fewer key heads than query heads where the family has that, an intermediate width that is no multiple of the
hidden one, and inputs longer than the sliding window where there is one.

    entry = zoo.entry("llama")          model = entry.build()          program = zoo.program("llama")
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rewrite_checks import context_of
from torch import Tensor, nn
from zoo_architectures import ARCHITECTURES, HIDDEN, INTERMEDIATE, WINDOW, Architecture

from compiler.frontends.torch_export import capture
from compiler.passes.canonicalize import Canonicalize
from compiler.program import Program

__all__ = [
    "HIDDEN", "INTERMEDIATE", "NARROW_KINDS", "WINDOW", "Entry", "Model", "canonical", "captured", "entry", "model",
    "names", "program",
]  # fmt: skip


NARROW_KINDS = {"token-mixer", "attention-block", "convolution-chain"}
"""Kinds of site that ask more of a place than others do, and say where it has less."""


@dataclass(frozen=True)
class Model:
    """One architecture in eval mode, inputs for it by argument name, and the site counts its configuration implies."""

    module: nn.Module
    inputs: dict[str, Tensor]
    counts: dict[str, int]


@dataclass(frozen=True)
class Entry:
    """How to build one architecture."""

    architecture: Architecture

    @property
    def name(self) -> str:
        """The name in the issue's list."""
        return self.architecture.name

    @property
    def role(self) -> str:
        """What a frontend would find it to be."""
        return self.architecture.role

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """Per input, the names of the dims that may vary."""
        return self.architecture.dynamic

    @property
    def inputs_at(self) -> Callable[[int, int], dict[str, Tensor]]:
        """Inputs for a batch size and a sequence length, the same on every call."""
        return self.architecture.inputs_at

    def build(self) -> Model:
        """The model with random weights and inputs of batch 2 and sequence 12. The same bytes on every call."""
        import transformers

        config = getattr(transformers, self.architecture.config)(**self.architecture.options)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = self.architecture.wrapper(getattr(transformers, self.architecture.model)(config))
            _unsettle(module)
        return Model(module.eval(), self.inputs_at(2, 12), self.architecture.count(config))


_ENTRIES = {architecture.name: Entry(architecture) for architecture in ARCHITECTURES}


def names() -> list[str]:
    """All architectures, in the order of the issue that asked for them."""
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The entry called `name`. Raises KeyError when there is none."""
    return _ENTRIES[name]


@functools.cache
def model(name: str) -> Model:
    """`entry(name).build()`, once a session: not to be changed by a test."""
    return entry(name).build()


@functools.cache
def captured(name: str) -> Program:
    """The captured Program, once a session: not to be changed by a test."""
    chosen, built = entry(name), model(name)
    return capture(built.module, built.inputs, source=f"zoo:{name}", role=chosen.role, dynamic=chosen.dynamic)


def program(name: str) -> Program:
    """A copy of the captured Program that a test may rewrite."""
    return captured(name).copy()


@functools.cache
def canonical(name: str) -> Program:
    """The Program as passes meet it, after canonicalize, once a session: not to be changed by a test."""
    chosen = program(name)
    Canonicalize().rewrite(chosen, context_of(chosen))
    return chosen


def _unsettle(module: nn.Module) -> None:
    """Give norms and biases values other than their ones and zeros, so that dropping one is seen."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
