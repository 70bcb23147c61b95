"""Bits by site: gradients against autograd, a model with one loud site."""

from __future__ import annotations

import torch
from rewrite_checks import captured, context_of
from torch import Tensor, nn

from compiler.grafting import apply_graft
from compiler.passes.quantize import Quantize
from compiler.quantization.sensitivity import gradient_power


class Two(nn.Module):
    """The second layer's input is scaled up: errors in `loud` matter a hundred times more."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.loud(x)) + 0.01 * torch.tanh(self.quiet(x)))


def example() -> Tensor:
    return torch.randn(32, 64, generator=torch.Generator().manual_seed(0))


def test_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    module = Two().eval()
    program = captured(module, x=example())
    program.role = "classifier"
    nodes = {node.name: node for node in program.graph.nodes}
    found = gradient_power(program, [nodes["linear"]], context_of(program).data, seed=3)
    hidden = module.loud(example()).detach().requires_grad_()
    logits = module.head(torch.tanh(hidden) + 0.01 * torch.tanh(module.quiet(example())))
    generator = torch.Generator().manual_seed(3)
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    assert hidden.grad is not None
    torch.testing.assert_close(found[nodes["linear"]], hidden.grad.square().mean(0))


def test_the_site_that_matters_gets_more_bits() -> None:
    torch.manual_seed(0)
    program = captured(Two().eval(), x=example())
    after, result = apply_graft(Quantize(bits="auto-4", skip=("head",)), program, (), context_of(program))
    notes = {outcome.site: outcome.note for outcome in result.outcomes}
    assert notes["loud"].startswith("4-bit weights in blocks of 32, expected cost ")
    assert notes["quiet"].startswith("4-bit weights")
    _, result = apply_graft(Quantize(bits="auto-3", skip=("head",)), program, (), context_of(program))
    bits = {outcome.site: outcome.note[0] for outcome in result.outcomes}
    assert (bits["loud"], bits["quiet"]) == ("4", "2")
    assert after.run(example())[0].shape == (32, 64)
