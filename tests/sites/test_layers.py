"""Linear, embedding, convolution and norm sites."""

from __future__ import annotations

import pytest
import torch
from rewrite_checks import captured
from site_checks import canonical, the_refusal, the_site
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.sites import Site, find_sites
from compiler.sites.names import block_name, unique, without_wrappers


class Wrapped(nn.Module):
    """A model one level down, as frontends and users wrap them."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.model.values():
            x = part(x)
        return x


def test_linear():
    site = the_site(canonical(Wrapped(head=nn.Linear(4, 6, bias=False)), x=torch.randn(2, 3, 4)), "linear")
    assert site.name == "head"
    assert [node.name for node in site.inputs] == ["x"]
    assert site.bindings == {
        "weight": "model.head.weight",
        "bias": None,
        "in_features": 4,
        "out_features": 6,
        "weight_transposed": False,
    }


def test_linear_with_a_weight_stored_as_in_by_out():
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))
            self.bias = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    site = the_site(canonical(Wrapped(c_attn=Conv1D()), x=torch.randn(2, 4)), "linear")
    assert site.bindings["weight_transposed"]
    assert (site.bindings["in_features"], site.bindings["out_features"]) == (4, 6)
    assert site.bindings["bias"] == "model.c_attn.bias"
    assert site.output in site.nodes


def test_a_product_that_is_not_canonical_yet_says_so():
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    refusal = the_refusal(captured(Product(), x=torch.randn(2, 4)), "linear")
    assert "run canonicalize first" in refusal.reason


class ComputedWeight(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, torch.tanh(self.weight), self.bias)


class ComputedBias(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, torch.tanh(self.bias))


class ComputedTable(nn.Embedding):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.embedding(x, torch.tanh(self.weight))


class ComputedKernel(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, torch.tanh(self.weight), self.bias)


class ComputedNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (4,), torch.tanh(self.weight), self.bias)


class OtherDim(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)


IMAGE = torch.randn(2, 4, 8, 8)


@pytest.mark.parametrize(
    ("kind", "module", "x", "reason"),
    [
        ("linear", ComputedWeight(4, 4), torch.randn(2, 4), "the weight is computed by tanh"),
        ("linear", ComputedBias(4, 4), torch.randn(2, 4), "the bias is computed by tanh"),
        ("embedding", ComputedTable(9, 4), torch.tensor([[1, 2], [3, 4]]), "the table is computed by tanh"),
        ("convolution", ComputedKernel(4, 4, 3), IMAGE, "the weight is computed by tanh"),
        ("convolution", nn.ConvTranspose2d(4, 4, 3), IMAGE, "a transposed convolution"),
        ("norm", ComputedNorm(4), torch.randn(2, 4), "a weight is computed by tanh"),
        ("norm", OtherDim(), torch.randn(2, 3, 4), "the mean is not over the last dim alone"),
    ],
)
def test_refusals(kind: str, module: nn.Module, x: Tensor, reason: str):
    assert the_refusal(canonical(Wrapped(part=module), x=x), kind).reason == reason


def test_embedding():
    site = the_site(
        canonical(Wrapped(words=nn.Embedding(9, 4, padding_idx=1)), x=torch.tensor([[1], [2]])), "embedding"
    )
    assert site.name == "words"
    assert site.bindings == {"weight": "model.words.weight", "vocabulary_size": 9, "width": 4, "padding_index": 1}


def test_convolution():
    convolution = nn.Conv2d(4, 8, (3, 1), stride=2, padding=(1, 0), groups=2, bias=False)
    site = the_site(canonical(Wrapped(stem=convolution), x=IMAGE), "convolution")
    assert site.bindings == {
        "weight": "model.stem.weight",
        "bias": None,
        "stride": (2, 2),
        "padding": (1, 0),
        "dilation": (1, 1),
        "groups": 2,
        "dims": 2,
        "in_channels": 4,
        "out_channels": 8,
        "kernel": (3, 1),
    }


@pytest.mark.parametrize(("module", "shape", "dims"), [(nn.Conv1d, (2, 4, 9), 1), (nn.Conv3d, (2, 4, 5, 5, 5), 3)])
def test_convolution_over_other_dims(module: type[nn.Module], shape: tuple[int, ...], dims: int):
    site = the_site(canonical(module(4, 4, 3, padding="same"), x=torch.randn(shape)), "convolution")
    assert (site.bindings["dims"], site.bindings["padding"]) == (dims, "same")
    assert site.bindings["kernel"] == (3,) * dims


class RmsNorm(nn.Module):
    offset = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (self.offset + self.weight if self.offset else self.weight) * normal


class GemmaNorm(RmsNorm):
    offset = 1.0


@pytest.mark.parametrize(
    ("module", "x", "bindings"),
    [
        (nn.LayerNorm(4, eps=1e-3), torch.randn(2, 4), {"norm": "layer_norm", "epsilon": 1e-3}),
        (nn.RMSNorm(4, eps=1e-3), torch.randn(2, 4), {"norm": "rms_norm", "epsilon": 1e-3, "weight_offset": 0.0}),
        (RmsNorm(), torch.randn(2, 4), {"norm": "rms_norm", "epsilon": 1e-6, "weight_offset": 0.0}),
        (GemmaNorm(), torch.randn(2, 4), {"norm": "rms_norm", "epsilon": 1e-6, "weight_offset": 1.0}),
        (nn.GroupNorm(2, 4), IMAGE, {"norm": "group_norm", "groups": 2, "epsilon": 1e-5}),
        (nn.BatchNorm2d(4), IMAGE, {"norm": "batch_norm", "mean": "model.norm.running_mean"}),
    ],
)
def test_norms(module: nn.Module, x: Tensor, bindings: dict[str, object]):
    site = the_site(canonical(Wrapped(norm=module), x=x), "norm")
    assert {key: site.bindings[key] for key in bindings} == pytest.approx(bindings)
    assert (site.name, site.bindings["weight"]) == ("norm", "model.norm.weight")
    assert site.inputs[0].name == "x"


@pytest.mark.parametrize("module", [RmsNorm, GemmaNorm])
def test_a_fused_norm_is_the_same_site(module: type[nn.Module]):
    from rewrite_checks import context_of

    from compiler.passes.fuse_rms_norm import FuseRmsNorm

    program = canonical(Wrapped(norm=module()), x=torch.randn(2, 4))
    before = the_site(program, "norm").bindings
    assert FuseRmsNorm().rewrite(program, context_of(program)).changed
    assert the_site(program, "norm").bindings == before


def test_a_module_that_is_called_twice_gives_two_sites():
    shared = nn.Linear(4, 4)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = shared

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(torch.relu(self.shared(x)) + x)

    found = find_sites(canonical(Twice(), x=torch.randn(2, 4)), ("linear",))
    assert [site.name for site in found] == ["shared", "shared@2"]


def test_graphs_without_module_paths_are_named_after_weights():
    program = canonical(Wrapped(a=nn.Linear(4, 4), b=nn.LayerNorm(4)), x=torch.randn(2, 4))
    for node in program.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    assert [site.name for site in find_sites(program) if isinstance(site, Site)] == ["a", "b"]


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(CompilerError) as raised:
        find_sites(canonical(nn.Linear(4, 4), x=torch.randn(2, 4)), ("atention",))
    assert "attention" in raised.value.hint


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("model.model.layers.0.self_attn", "layers.0.self_attn"),
        ("model.lm_head", "lm_head"),
        ("module.model", ""),
        ("bert.encoder.layer.0", "bert.encoder.layer.0"),
        ("model", ""),
        ("encoder.model.block", "encoder.model.block"),
    ],
)
def test_wrappers_are_left_out_of_names(path: str, name: str):
    assert without_wrappers(path) == name


def test_blocks_are_named_after_what_holds_their_parts():
    assert block_name(["layers.0.mlp.up", "layers.0.mlp.down"], "x", "feed_forward") == "layers.0.mlp"
    assert block_name(["layer.0.a.dense", "layer.0.b.dense"], "x", "feed_forward") == "layer.0.feed_forward"
    assert block_name(["up", "down"], "", "feed_forward") == "feed_forward"


def test_unique_counts_from_the_second():
    taken: set[str] = set()
    assert [unique("a", taken) for _ in range(3)] == ["a", "a@2", "a@3"]
