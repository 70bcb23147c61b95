"""Evidence: what a change did, in numbers with units, on named data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from compiler.program import Program


@dataclass(frozen=True)
class Fidelity:
    """How far outputs are from the captured model's, row by row.

    A row is one embedding, one token's vector or one sample's scores.
    Cosines are over all rows. `top1_agreement` is the share of rows with the same arg max, for models that choose;
    `neighbour_agreement` the share of samples whose nearest other sample stays the same, for models that embed; None
    where the role has no such notion. Language models also have the perplexity of the text's next tokens, its ratio to
    the captured model's, and the mean divergence KL(captured || now) of a token's distribution, in nats.
    """

    mean_cosine: float
    worst_cosine: float
    largest_error: float
    row_count: int
    top1_agreement: float | None = None
    neighbour_agreement: float | None = None
    perplexity: float | None = None
    perplexity_ratio: float | None = None
    kl_divergence: float | None = None

    @property
    def drop(self) -> float:
        """What --max-drop bounds: lost top-1 agreement for models that choose, otherwise one minus the mean cosine."""
        if self.top1_agreement is not None:
            return 1.0 - self.top1_agreement
        return max(0.0, 1.0 - self.mean_cosine)


@dataclass(frozen=True)
class Evidence:
    """What a Program is worth after a pass.

    `weight_bytes` counts each stored weight once, `flops` is the work of one example input set (multiply and add count
    as two), `seconds` the time that the pass took, `peak_memory_bytes` the process's peak so far. `probes` hold further
    scores by name. `carried` says that fidelity and probes are those before a rewrite that was checked to be exact.
    """

    fidelity: Fidelity | None
    weight_bytes: int
    flops: int
    seconds: float
    peak_memory_bytes: int
    probes: dict[str, float] = field(default_factory=dict)
    carried: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json, with `drop` spelled out."""
        values = asdict(self)
        if self.fidelity is not None:
            values["fidelity"]["drop"] = self.fidelity.drop
        return values


class Probe(ABC):
    """A further score of a Program, for instance recall; plugins register more."""

    name: ClassVar[str]

    @abstractmethod
    def applies(self, program: Program) -> bool:
        """Whether the score means anything for this Program."""

    @abstractmethod
    def score(self, program: Program, seed: int) -> float:
        """The score; higher is better."""
