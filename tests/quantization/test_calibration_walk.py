"""The walk: statistics of what flows into each site, stand-ins before it included, and values that are let go."""

from __future__ import annotations

import torch
from rewrite_checks import captured, context_of
from torch import Tensor, nn

from compiler.evidence.data import Dataset
from compiler.program import Program
from compiler.quantization.calibration_walk import CalibrationWalk
from compiler.sites import Site, find_sites


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.first(x)) + self.second(x))


def example() -> Tensor:
    return torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))


def walked() -> tuple[Program, list[Site], CalibrationWalk]:
    torch.manual_seed(0)
    program = captured(Three().eval(), x=example())
    sites = [site for site in find_sites(program, ("linear",)) if isinstance(site, Site)]
    return program, sites, CalibrationWalk(program, context_of(program).data)


def moment(x: Tensor) -> Tensor:
    rows = x.detach().flatten(0, -2)
    return rows.T @ rows / len(rows)


def test_stand_ins_are_in_what_flows_into_later_sites() -> None:
    program, (first, second, third), walk = walked()
    weights = {name: value.detach() for name, value in program.weights().items()}
    found = walk.statistics(first)
    assert found is not None
    torch.testing.assert_close(found.second_moment, moment(example()))
    stand_in = nn.Linear(8, 6)
    walk.replace(first, stand_in)
    assert walk.statistics(second) is found
    last = walk.statistics(third)
    assert last is not None
    linear = torch.nn.functional.linear
    plain = linear(example(), weights["second.weight"], weights["second.bias"])
    torch.testing.assert_close(last.second_moment, moment(torch.relu(stand_in(example())) + plain))


def test_only_what_later_nodes_read_is_kept() -> None:
    _, (*_, third), walk = walked()
    walk.statistics(third)
    (lane,) = walk._lanes
    kept = {node for node in lane.env if node.op != "get_attr"}
    assert kept == {third.inputs[0]}


def test_without_data_there_is_nothing_to_know() -> None:
    program, (first, *_), _ = walked()
    assert CalibrationWalk(program, Dataset("none", (), ())).statistics(first) is None
