"""What may learn: parameters of stand-ins that their grafts name, and low-rank changes to the layers around sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from compiler.healing.frozen_graph import LowRank, linear_weight
from compiler.healing.plan import Patient
from compiler.program import Program
from compiler.sites import Site, find_sites

AROUND = ("query", "key", "value", "output")
"""Bindings of a site that name the linear sites around it."""


@dataclass(frozen=True)
class Change:
    """A low-rank change to a stored weight, and the number of the first site beside it."""

    weight: str
    transposed: bool
    site: int
    module: LowRank


@dataclass(frozen=True)
class Learners:
    """Parameters by name: those of each stand-in, and the changes."""

    stand_ins: tuple[dict[str, nn.Parameter], ...]
    changes: tuple[Change, ...]

    def all(self) -> dict[str, nn.Parameter]:
        """Every parameter under one name."""
        found = {f"site{index}.{name}": one for index, own in enumerate(self.stand_ins) for name, one in own.items()}
        for change in self.changes:
            found |= {f"{change.weight}.{name}": one for name, one in change.module.named_parameters()}
        return found

    def parts(self, patients: Sequence[Patient]) -> dict[str, float]:
        """By name, the part of the learning rate that parameters of stand-ins take."""
        pairs = enumerate(zip(self.stand_ins, patients, strict=True))
        return {f"site{index}.{name}": patient.rate for index, (own, patient) in pairs for name in own}

    @property
    def count(self) -> int:
        """Numbers that may learn."""
        return sum(one.numel() for one in self.all().values())

    def merged(self, program: Program) -> tuple[dict[str, Tensor], ...]:
        """For each site, the weights around it with their changes in them."""
        found: list[dict[str, Tensor]] = [{} for _ in self.stand_ins]
        for change in self.changes:
            weight = program.weight(change.weight).detach()
            found[change.site][change.weight] = change.module.merged(weight, transposed=change.transposed)
        return tuple(found)


def find_learners(patients: Sequence[Patient], student: Program, rank: int, seed: int) -> Learners:
    """What may learn in `student`, where the stand-ins of `patients` stand, with changes of a rank (0: none)."""
    own = tuple(
        {
            name: one
            for name, one in patient.module.named_parameters()
            if one.is_floating_point() and any(fnmatchcase(name, pattern) for pattern in patient.heal)
        }
        for patient in patients
    )
    return Learners(own, tuple(_changes(patients, student, rank, seed)) if rank else ())


@contextmanager
def learning(patients: Sequence[Patient], learners: Learners) -> Iterator[None]:
    """Inside, what may learn needs gradients and nothing else of the stand-ins does."""
    wanted = {id(one) for one in learners.all().values()}
    every = {id(one): one for patient in patients for one in patient.module.parameters()}
    before = {key: one.requires_grad for key, one in every.items()}
    for key, one in every.items():
        one.requires_grad_(key in wanted)
    try:
        yield
    finally:
        for key, one in every.items():
            one.requires_grad_(before[key])
            one.grad = None


def _changes(patients: Sequence[Patient], student: Program, rank: int, seed: int) -> Iterator[Change]:
    linears = {one.name: one for one in find_sites(student, ("linear",)) if isinstance(one, Site)}
    generator = torch.Generator().manual_seed(seed)
    taken: set[str] = set()
    for index, patient in enumerate(patients):
        for role in AROUND:
            linear = linears.get(str(patient.site.bindings.get(role)))
            weight = None if linear is None else str(linear.bindings["weight"])
            if linear is None or weight is None or weight in taken or not _is_only_a_weight(student, weight):
                continue
            taken.add(weight)
            sizes = int(linear.bindings["in_features"]), int(linear.bindings["out_features"])
            module = LowRank(*sizes, min(rank, *sizes), generator)
            yield Change(weight, bool(linear.bindings["weight_transposed"]), index, module)


def _is_only_a_weight(program: Program, name: str) -> bool:
    """Whether linear layers alone read a weight, all in the same way."""
    kinds: set[tuple[str, bool] | None] = set()
    for node in program.graph.find_nodes(op="get_attr", target=name):
        readers = list(node.users)
        for reader in readers:
            through = list(reader.users) if linear_weight(reader) is None else [reader]
            kinds |= {linear_weight(one) for one in through}
    return len(kinds) == 1 and None not in kinds
