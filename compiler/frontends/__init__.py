"""Frontends read a model of some kind into a Program. `accepts` decides which one reads what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.errors import CompilerError

if TYPE_CHECKING:
    from compiler.program import Program


@dataclass(frozen=True)
class LoadOptions:
    """What the user said about the model beside its name.

    `inputs` are texts such as `x=float32[batch,3,224,224]`. `allow_pickle` lets files be read that
    can run code while they are read.
    """

    inputs: tuple[str, ...] = ()
    allow_pickle: bool = False


@dataclass(frozen=True)
class UnsupportedOperator:
    """An operator that a frontend does not read, how many nodes use it, and the first of them."""

    operator: str
    count: int
    first: str


class UnsupportedOperatorsError(CompilerError):
    """A model uses operators that its frontend does not read; `operators` lists them all."""

    def __init__(self, doing: str, operators: tuple[UnsupportedOperator, ...], hint: str) -> None:
        listed = ", ".join(f"{one.operator} ({one.count}, first {one.first!r})" for one in operators)
        noun = "operator is" if len(operators) == 1 else "operators are"
        super().__init__(doing, f"{len(operators)} {noun} not read: {listed}", hint)
        self.operators = operators


class Frontend(ABC):
    """Reads models of one kind. `form` shows how such a model is named on the command line."""

    name: ClassVar[str]
    form: ClassVar[str]

    @abstractmethod
    def accepts(self, model: str) -> bool:
        """Whether this text names a model of this kind. Looks at names and small files only."""

    @abstractmethod
    def load(self, model: str, options: LoadOptions) -> Program:
        """Read the model. Raises CompilerError when it is damaged, incomplete or unsafe to read."""


def load_model(model: str, options: LoadOptions, frontends: Iterable[type[Frontend]]) -> Program:
    """Read `model` with the first frontend that accepts it. Raises CompilerError when none does."""
    from compiler.frontends.no_such_model import no_such_model

    known = [frontend() for frontend in frontends]
    for frontend in known:
        if frontend.accepts(model):
            return frontend.load(model, options)
    raise no_such_model(model, known)
