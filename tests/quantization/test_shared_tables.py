"""Codes of a table that is the output head too, which make up for the errors of the head."""

from __future__ import annotations

import torch
from rewrite_checks import captured, context_of
from torch import Tensor, nn

from compiler.ops.quantized_linear import dequantized_weight
from compiler.quantization.shared_tables import SharedTables
from compiler.quantization.stand_ins import BlockForm
from compiler.sites import Site, find_sites

ROWS, WIDTH = 60, 64
FORM = BlockForm(4, 32, "none")


class Tied(nn.Module):
    """A head that reads vectors near a few directions, with the weight of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, ROWS, bias=False)
        self.head.weight = self.table.weight
        self.mix = nn.Sequential(nn.Linear(WIDTH, 6, bias=False), nn.Linear(6, WIDTH, bias=False))

    def hidden(self, indices: Tensor) -> Tensor:
        """What the head reads."""
        found = self.table(indices)
        return self.mix(found) + 0.02 * found

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.hidden(indices))


def indices(seed: int) -> Tensor:
    """Random rows."""
    return torch.randint(0, ROWS, (16, 12), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_head_errs_less_on_inputs_that_were_not_seen_and_both_read_one_table() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    program = captured(model, indices=indices(0))
    sites = [one for one in find_sites(program, ("embedding", "linear")) if isinstance(one, Site)]
    table, head = (next(one for one in sites if one.name == name) for name in ("table", "head"))
    read = model.hidden(indices(1)).flatten(0, 1)
    errors = []
    for data in (None, context_of(program).data):
        tables = SharedTables(sites, program, data)
        packed = tables.packed(table, FORM)
        assert tables.packed(head, FORM) is packed
        rounded = dequantized_weight(packed.weight, packed.scales, packed.zero_points, 4, WIDTH)
        errors.append(float((read @ (rounded - model.table.weight).T).norm()))
    nearest, made_up = errors
    assert made_up < 0.5 * nearest
