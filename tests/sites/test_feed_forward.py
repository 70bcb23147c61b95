from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from site_checks import canonical, the_refusal, the_site
from torch import Tensor, nn

from compiler.sites import find_sites
from compiler.sites.activations import KNOWN, activation_name, probe_points

X = torch.randn(2, 3, 8)


class Plain(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Gated(Plain):
    def __init__(self, activation: Callable[[Tensor], Tensor] = F.silu) -> None:
        super().__init__(activation)
        self.gate = nn.Linear(8, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * self.activation(self.gate(x)))


class Merged(Plain):
    def __init__(self, part: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.up, self.part = nn.Linear(8, 24), part

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.part(self.up(x))
        return self.down(F.silu(gate) * up)


def gelu_of_gpt2(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_of_bloom(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


def gelu_by_erf(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (F.relu, "relu"),
        (F.gelu, "gelu"),
        (gelu_by_erf, "gelu"),
        (gelu_of_gpt2, "gelu_tanh"),
        (gelu_of_bloom, "gelu_tanh"),
        (lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: F.relu(x) ** 2, "relu_squared"),
        (F.relu6, "relu6"),
        (torch.tanh, "tanh"),
        (lambda x: torch.tanh(x) * 3, "unknown"),
    ],
)
def test_an_activation_is_known_by_what_it_computes(activation: Callable[[Tensor], Tensor], name: str):
    site = the_site(canonical(Plain(activation), x=X), "feed-forward")
    assert (site.bindings["form"], site.bindings["activation"]) == ("plain", name)


@pytest.mark.parametrize("name", KNOWN)
def test_known_activations_are_told_apart(name: str):
    assert activation_name(KNOWN[name](probe_points())) == name


def test_plain():
    site = the_site(canonical(Plain(), x=X), "feed-forward")
    assert site.name == "feed_forward"
    assert [node.name for node in site.inputs] == ["x"]
    assert site.bindings == {
        "form": "plain",
        "activation": "gelu",
        "hidden_size": 8,
        "intermediate_size": 12,
        "up": "up.weight",
        "up_bias": "up.bias",
        "up_rows": (0, 12),
        "gate": None,
        "gate_bias": None,
        "gate_rows": None,
        "down": "down.weight",
        "down_bias": None,
        "weight_transposed": False,
    }


def test_gated():
    bindings = the_site(canonical(Gated(), x=X), "feed-forward").bindings
    assert (bindings["form"], bindings["activation"]) == ("gated", "silu")
    assert (bindings["gate"], bindings["up"], bindings["down"]) == ("gate.weight", "up.weight", "down.weight")


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(lambda y: y.chunk(2, dim=-1), id="chunk"),
        pytest.param(lambda y: y.split(12, dim=-1), id="split"),
        pytest.param(lambda y: y.split([12, 12], dim=-1), id="split with sizes"),
        pytest.param(lambda y: (y[..., :12], y[..., 12:]), id="slices"),
    ],
)
def test_gate_and_up_merged_in_one_layer(part: Callable[[Tensor], tuple[Tensor, Tensor]]):
    bindings = the_site(canonical(Merged(part), x=X), "feed-forward").bindings
    assert (bindings["gate"], bindings["up"]) == ("up.weight", "up.weight")
    assert (bindings["gate_rows"], bindings["up_rows"]) == ((0, 12), (12, 24))
    assert (bindings["hidden_size"], bindings["intermediate_size"]) == (8, 12)


def test_the_nodes_of_a_site_compute_its_output_from_its_inputs():
    site = the_site(canonical(Gated(), x=X), "feed-forward")
    outside = {source for node in site.nodes for source in node.all_input_nodes} - set(site.nodes)
    assert {node for node in outside if node.op != "get_attr"} == set(site.inputs)
    assert site.nodes[-1] is site.output


class HeadOfAClassifier(Plain):
    def __init__(self) -> None:
        super().__init__(torch.tanh)
        self.down = nn.Linear(12, 2)


class HiddenReturned(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.gelu(self.up(x))
        return self.down(hidden), hidden


class TwoInputs(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(torch.cos(x)))


class Added(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) + self.up(x))


class Residual(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)) + torch.cat([x, x[..., :4]], dim=-1))


class Scaled(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)) * self.scale)


class ThreeLayers(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x) * self.third(x))


class ComputedWeight(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(F.linear(x, torch.cos(self.up.weight))))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (HeadOfAClassifier, "8 features go in and 2 come out"),
        (HiddenReturned, "gelu is read elsewhere too"),
        (TwoInputs, "the branches have different inputs"),
        (Added, "the two branches are not an activation times the other"),
        (Residual, "the hidden value also depends on cat"),
        (Scaled, "the hidden value also depends on scale"),
        (ThreeLayers, "3 linear layers meet in the hidden value"),
        (ComputedWeight, "up: the weight is computed by cos"),
    ],
)
def test_refusals(module: type[nn.Module], reason: str):
    assert the_refusal(canonical(module(), x=X), "feed-forward").reason == reason


def test_layers_without_an_activation_are_nothing():
    assert find_sites(canonical(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8)), x=X), ("feed-forward",)) == []


class Experts(nn.Module):
    """Every token with a copy of the weights of its expert, as mixtures of experts are exported."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(4, 24, 8))
        self.down = nn.Parameter(torch.randn(4, 8, 12))

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        hidden = torch.bmm(self.gate_up[experts], x.unsqueeze(-1)).squeeze(-1)
        gate, up = hidden.chunk(2, dim=-1)
        return torch.bmm(self.down[self.chosen(experts)], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)

    def chosen(self, experts: Tensor) -> Tensor:
        return experts


class OthersLast(Experts):
    def chosen(self, experts: Tensor) -> Tensor:
        return 3 - experts


def routed() -> dict[str, Tensor]:
    return {"x": torch.randn(6, 8), "experts": torch.tensor([0, 3, 1, 2, 3, 0])}


def test_experts_whose_weights_are_gathered():
    program = canonical(Experts(), **routed())
    site = the_site(program, "feed-forward")
    assert [node.name for node in site.inputs] == ["x", "experts"]
    wanted = {"form": "experts", "activation": "silu", "expert_count": 4, "routed_by": "ids", "up": "gate_up"}
    wanted |= {"gate_rows": (0, 12), "up_rows": (12, 24), "down": "down", "weight_transposed": False}
    assert {key: site.bindings[key] for key in wanted} == wanted


def test_experts_that_are_chosen_anew_for_the_last_layer_are_refused():
    program = canonical(OthersLast(), **routed())
    assert "grouped anew" in the_refusal(program, "feed-forward").reason
