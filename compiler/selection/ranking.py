"""A ranking of sites by what each costs when it alone is replaced, and which of them `auto-` takes.

    recall   sum over probes of max(0, lost nats) + 100 * error      kl   100 * error

`lost nats` is by how much less likely the tokens of answers became, in nats a token; `error` is KL(before || after) in
nats a token for language models, for others one minus the mean cosine of outputs. A layer may hardly move perplexity
and yet be the one that recalls: of SmolLM2-135M with a window of 64 tokens, layer 8 costs 0.015 nats of divergence and
0.8 of copying, layer 18 costs 0.011 and 5.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.selection.layer_choice import Rank

ERROR_WEIGHT = 100.0


@dataclass(frozen=True)
class SiteCost:
    """What one site costs alone: `node` is the name of its output's node, `recall` the nats lost by probe."""

    node: str
    site: str
    error: float
    recall: Mapping[str, float] = field(default_factory=dict)

    def parts(self, rank: Rank) -> dict[str, float]:
        """What the score is the sum of, by name; infinite where the outputs are broken."""
        lost = {name: math.inf if nats != nats else max(0.0, nats) for name, nats in self.recall.items()}
        error = math.inf if self.error != self.error else ERROR_WEIGHT * max(0.0, self.error)
        return {**(lost if rank == "recall" else {}), "error": error}

    def score(self, rank: Rank) -> float:
        """The lower, the sooner the site is replaced."""
        return sum(self.parts(rank).values())


@dataclass(frozen=True)
class SiteRanking:
    """What sites cost alone, in graph order, and how many of them are taken.

    `error_name` says what `error` is of ("KL" or "1 - cosine"), `data` what was measured on; `reused` how many sites
    were measured by an earlier run.
    """

    rank: Rank
    costs: tuple[SiteCost, ...]
    count: int
    error_name: str = "KL"
    data: str = ""
    seconds: float = 0.0
    reused: int = 0

    def ordered(self) -> list[SiteCost]:
        """The cheapest first; equals in graph order."""
        return sorted(self.costs, key=lambda cost: cost.score(self.rank))

    def chosen(self) -> frozenset[str]:
        """Nodes of the sites that are taken."""
        return frozenset(cost.node for cost in self.ordered()[: self.count])

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json, sites in graph order."""
        chosen = self.chosen()
        return {
            "rank": self.rank,
            "error": self.error_name,
            "error_weight": ERROR_WEIGHT,
            "data": self.data,
            "seconds": self.seconds,
            "reused": self.reused,
            "sites": [
                {
                    "site": cost.site,
                    "replaced": cost.node in chosen,
                    "score": cost.score(self.rank),
                    "error": cost.error,
                    "recall": dict(cost.recall),
                    "parts": cost.parts(self.rank),
                }
                for cost in self.costs
            ],
        }


def share_count(share: float, site_count: int) -> int:
    """How many of `site_count` sites a share of them is: the nearest number, halves down, and at least one."""
    return max(1, math.ceil(share * site_count - 0.5 - 1e-9))


def costs_from_json(values: Sequence[Mapping[str, Any]]) -> dict[str, SiteCost]:
    """Costs by node, as `cost_to_json` wrote them."""
    return {
        one["node"]: SiteCost(
            one["node"], one["site"], float(one["error"]), {k: float(v) for k, v in one["recall"].items()}
        )
        for one in values
    }


def cost_to_json(cost: SiteCost) -> dict[str, Any]:
    """A cost as plain values. JSON as Python writes it has words for what is not finite."""
    return {"node": cost.node, "site": cost.site, "error": cost.error, "recall": dict(cost.recall)}
