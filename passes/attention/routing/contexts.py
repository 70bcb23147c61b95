"""Contexts that routers learn from, and what each of them loses in a window.

Text, text that repeats itself from its start, and the sequences of recall probes; none of it judges the result, and
all of it is longer than what a router reads. What a context loses
is KL(before || after) in nats a token when every candidate site has a window at once: of all tokens of text, of those
that repeat, of the answers where recall is asked for. One site alone would say less, since others make up for it.
Divergence alone does not tell: windows in layers that matter little cost a tenth of a nat where copies are concerned,
and one copied token in six. So what was told right is counted too, over all contexts of a kind that recalls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from compiler.evidence.language import MASK, TOKENS, divergences
from compiler.evidence.probes.recall import Recall, RecallProbe, recall_batch
from compiler.lanes import Lane, dead_after
from compiler.passes.attention.routing.routed_attention import pooled
from compiler.selection.site_meter import asked_reach

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.rewriting import PassContext
    from compiler.sites import Site

TEXT, REPEATED = "text", "repeated text"
REPEATED_AFTER = 0.25
"""Of the way from the window, which a repetition must not fit in, to the end of what a router reads, which must see it
begin.
"""
MOST_TEXTS = 48
DRAWS = 2
"""How many times each probe draws its sequences."""


@dataclass(frozen=True)
class Context:
    """Token ids [tokens], and the positions after which what is foretold counts."""

    kind: str
    tokens: Tensor
    places: Tensor


@dataclass(frozen=True)
class Observation:
    """What a context loses in windows, and what each site's router sees of it: [2 * width] by the site's output.

    Of what recall asks for, `right` tokens were the model's first choice before, and `still_right` are in windows.
    """

    kind: str
    lost: float
    right: int
    still_right: int
    seen: Mapping[fx.Node, Tensor]


def language_contexts(program: Program, context: PassContext, window: int, first: int) -> list[Context]:
    """Contexts for a language model whose routers read the `first` tokens, drawn from calibration data and from probes
    that ask farther back than a `window` of tokens.
    """
    reach, span = asked_reach(window), window + int((first - window) * REPEATED_AFTER)
    texts = [tokens for tokens in _texts(program, context) if len(tokens) > first][:MOST_TEXTS]
    found = [Context(TEXT, tokens, torch.arange(len(tokens))) for tokens in texts]
    for tokens in texts if span < first else ():
        repeated = tokens[:span].repeat(-(-len(tokens) // span))[: len(tokens)]
        found.append(Context(REPEATED, repeated, torch.arange(span, len(tokens))))
    for probe in context.probes:
        if not isinstance(probe, RecallProbe) or not probe.applies(program):
            continue
        for draw in range(DRAWS):
            for recall in probe.drawn(program, context.seed + draw, "ranking", reach):
                if len(recall.tokens) <= first:
                    continue
                answers = torch.cat([torch.arange(answer.start - 1, answer.stop - 1) for answer in recall.answers])
                found.append(Context(probe.name, recall.tokens, answers))
    return found


def observed(
    program: Program,
    contexts: Sequence[Context],
    sites: Sequence[Site],
    windows: Mapping[fx.Node, nn.Module],
    first: int,
) -> Iterable[Observation]:
    """Run every context as it is and with `windows` in place of all `sites`.

    A router sees the `first` tokens, which attend to all before them whatever routers choose: so it will see what it
    sees in the Program as it is.
    """
    for context in contexts:
        batch = recall_batch(program, Recall(context.tokens, ()))
        before, seen = _run(program, batch, sites, {}, first)
        after, _ = _run(program, batch, sites, windows, first)
        rows = (logits[0, context.places].float().log_softmax(-1) for logits in (before, after))
        lost = float(divergences(*rows).mean())
        right, still_right = (_told_right(context, logits[0]) for logits in (before, after))
        yield Observation(context.kind, lost, right, still_right, seen)


def needing_all(observations: Sequence[Observation], loss: float, forgotten: float) -> Tensor:
    """bool [contexts]: those that lose more than `loss` nats a token, and all of a kind that tells less right by more
    than a share of `forgotten`.
    """
    right, still_right = Counter[str](), Counter[str]()
    for one in observations:
        right[one.kind] += one.right
        still_right[one.kind] += one.still_right
    fewer = {kind for kind, count in right.items() if still_right[kind] < (1 - forgotten) * count}
    return torch.tensor([one.lost > loss or one.kind in fewer for one in observations], dtype=torch.bool)


def _told_right(context: Context, logits: Tensor) -> int:
    """How many of the tokens that recall asks for are the first choice of logits [tokens, vocabulary]; 0 of text."""
    if context.kind == TEXT:
        return 0
    asked = context.places[context.places + 1 < len(context.tokens)]
    return int((logits[asked].argmax(-1) == context.tokens[asked + 1]).sum())


def _texts(program: Program, context: PassContext) -> list[Tensor]:
    """Token ids of each calibration sample, without padding."""
    names = [spec.name for spec in program.inputs]
    found = []
    for batch in context.data.calibration:
        tokens = batch[names.index(TOKENS)]
        counts = batch[names.index(MASK)].sum(1) if MASK in names else torch.full((len(tokens),), tokens.shape[1])
        found += [row[:count].long() for row, count in zip(tokens, counts.tolist(), strict=True)]
    return found


@torch.no_grad()
def _run(
    program: Program, batch: tuple[Tensor, ...], sites: Sequence[Site], stand_ins: Mapping[fx.Node, nn.Module],
    first: int,
) -> tuple[Tensor, dict[fx.Node, Tensor]]:  # fmt: skip
    """Logits with stand-ins in place of sites, and what a router at each site would see."""
    nodes = list(program.graph.nodes)
    by_output = {site.output: site for site in sites}
    dead = dead_after(nodes, {site.output: site.inputs for site in sites})
    lane = Lane(program, program.complete(batch))
    seen: dict[fx.Node, Tensor] = {}
    for node in nodes[:-1]:
        if (site := by_output.get(node)) is not None:
            seen[node] = pooled(lane.env[site.inputs[0]], first)[0]
        if site is not None and node in stand_ins:
            lane.env[node] = stand_ins[node](*(lane.env[one] for one in site.inputs))
            lane.let_go(dead[node])
        else:
            lane.pass_node(node, dead[node])
    logits: Tensor = lane.run_node(nodes[-1])[0]
    return logits, seen
