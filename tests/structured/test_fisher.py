"""The Fisher information of weights against autograd, sample by sample."""

from __future__ import annotations

import dataclasses

import torch
from rewrite_checks import captured, context_of
from torch import Tensor, nn

from compiler.evidence.data import Dataset
from compiler.sites import Site, find_sites
from compiler.structured.fisher import fisher_sums


class Pair(nn.Module):
    """Two layers with tokens between batch and features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, 6] to [batch, tokens, 4]."""
        return self.second(torch.tanh(self.first(x)))


def test_sums_are_those_of_squared_gradients_of_samples() -> None:
    torch.manual_seed(0)
    module, x = Pair().eval(), torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    program = captured(module, x=x)
    sites = [one for one in find_sites(program, ("linear",)) if isinstance(one, Site)]
    found = fisher_sums(program, sites, context_of(program).data, seed=5)
    projection = torch.randn(12, 4, generator=torch.Generator().manual_seed(5)).reshape(3, 4, 4)
    for site in sites:
        name = site.bindings["weight"]
        expected = torch.zeros(dict(module.named_parameters())[name].shape)
        for sample in range(3):
            module.zero_grad()
            (module(x[sample : sample + 1]) * projection[sample : sample + 1]).sum().backward()
            expected += dict(module.named_parameters())[name].grad.square()
        sums = found[site.output]
        torch.testing.assert_close(sums.by_row.float(), expected.sum(1))
        torch.testing.assert_close(sums.by_column.float(), expected.sum(0))
        weighing = sums.weighing()
        assert weighing.rows is not None
        assert weighing.moment is not None
        product = torch.outer(weighing.rows, weighing.moment.diagonal()).float()
        torch.testing.assert_close(product, torch.outer(expected.mean(1), expected.mean(0)) / expected.mean())


def test_without_calibration_data_nothing_is_known() -> None:
    program = captured(Pair().eval(), x=torch.randn(3, 4, 6))
    sites = [one for one in find_sites(program, ("linear",)) if isinstance(one, Site)]
    assert fisher_sums(program, sites, dataclasses.replace(context_of(program).data, calibration=())) == {}
    assert fisher_sums(program, sites, Dataset("none", (), ())) == {}
