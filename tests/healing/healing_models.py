"""Small models, grafts that do harm which training can mend, and plans with a clock that only moves when it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compiler.evidence.data import Dataset
from compiler.frontends.torch_export import capture
from compiler.healing.options import HealingOptions
from compiler.healing.plan import HealingPlan
from compiler.program import Program
from compiler.rewriting import Graft, PassContext, Replacement
from compiler.sites import Refusal, Site
from compiler.target import Target

VOCABULARY, WIDTH, TOKENS = 48, 16, 24


class Block(nn.Module):
    """Attention of two heads and a feed-forward layer, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, width]."""
        batch, tokens, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, tokens, 2, WIDTH // 2).transpose(1, 2)

        mixed = nn.functional.scaled_dot_product_attention(
            heads(self.query(x)), heads(self.key(x)), heads(self.value(x)), is_causal=True
        )
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.down(torch.tanh(self.up(x)))


class TinyModel(nn.Module):
    """Two blocks between an embedding and logits."""

    def __init__(self, outputs: int = VOCABULARY) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, outputs, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits, or vectors, [batch, tokens, outputs]."""
        x = self.table(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def tiny_program(role: str = "causal-lm") -> Program:
    """A Program of random weights that are large enough to matter."""
    torch.manual_seed(0)
    model = TinyModel().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    ids = torch.randint(0, VOCABULARY, (2, TOKENS))
    dims = {0: "batch", 1: "sequence"}
    return capture(model, {"input_ids": ids}, source="tiny", role=role, dynamic={"input_ids": dims})


def token_data(count: int = 24) -> Dataset:
    """Windows of random tokens: two to score, two to calibrate, the rest to train on."""
    generator = torch.Generator().manual_seed(3)
    windows = [(torch.randint(0, VOCABULARY, (1, TOKENS), generator=generator),) for _ in range(count + 4)]
    return Dataset("random tokens", tuple(windows[:2]), tuple(windows[2:4]), training=tuple(windows[4:]))


class Noisy(nn.Module):
    """A linear layer with noise in its weight; only the weight may learn."""

    def __init__(self, weight: Tensor, bias: Tensor | None, noise: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(weight.shape[0])
        drawn = torch.randn(weight.shape, generator=generator) * weight.std()
        self.weight = nn.Parameter(weight.detach() + noise * drawn)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return nn.functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class AddNoise(Graft):
    """Feed-forward layers with noise in their weights."""

    name = "add-noise"
    site_kinds = ("linear",)
    noise: float = 0.5
    heal: tuple[str, ...] = ("weigh?",)

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The layer with noise."""
        if not site.name.endswith((".up", ".down")):
            return Refusal("no feed-forward layer", str(site.output))
        weight, bias = (program.weight(site.bindings[name]) for name in ("weight", "bias"))
        return Replacement(Noisy(weight, bias, self.noise), "noise", heal=self.heal)


class QuietAttention(nn.Module):
    """Attention whose output is too small: nothing in it may learn, what is around it can make up for it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """value [batch, heads, tokens, head_dim] -> the same."""
        return 0.3 * nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


@dataclass(frozen=True)
class Hush(Graft):
    """Attention with too small an output."""

    name = "hush"
    site_kinds = ("attention",)

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The same attention, less of it."""
        return Replacement(QuietAttention(), "quiet")


def ticking(step: float = 0.05) -> Callable[[], float]:
    """A clock that goes on by `step` seconds whenever it is read."""
    now = [0.0]

    def read() -> float:
        now[0] += step
        return now[0]

    return read


LARGE_STEPS = 2e-2
"""A learning rate for layers of 16 numbers that learn at a part of it."""


def healing_context(
    folder: Path, minutes: float = 1.0, data: Dataset | None = None, step: float = 0.05, **options: object
) -> PassContext:
    """A context whose healing works in `folder`."""
    plan = HealingPlan(HealingOptions(minutes, **options), folder, ticking(step))
    return PassContext(Target("cpu"), data or token_data(), healing=plan)
