"""Measures what a site costs when it alone is replaced: divergence or distance of the outputs, and recall in nats.

All on data that passes may look at and on sequences that no score is taken on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from compiler.evidence.fidelity import compare_with, main_output, reference_outputs
from compiler.evidence.language import is_language_model
from compiler.evidence.probes.recall import REACH, RecallProbe, recall_batch, recall_score
from compiler.selection.branching_run import BranchingRun
from compiler.selection.ranking import SiteCost

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.rewriting import PassContext
    from compiler.sites import Site


def ranking_probes(program: Program, context: PassContext) -> list[RecallProbe]:
    """The probes of `context` that measure nats and apply to `program`, by name."""
    probes = [probe for probe in context.probes if isinstance(probe, RecallProbe) and probe.applies(program)]
    return sorted(probes, key=lambda probe: probe.name)


def asked_reach(reach: int) -> int:
    """From how many tokens back probes ask where a stand-in still sees `reach` tokens: from twice as far."""
    return max(REACH, 2 * reach)


class SiteMeter:
    """Measures sites of one Program, in graph order. The graph must not be edited while it lasts."""

    def __init__(
        self,
        program: Program,
        context: PassContext,
        sites: Sequence[Site],
        probes: Sequence[RecallProbe],
        reach: int,
    ) -> None:
        """Runs the Program as it is once, on everything."""
        self._data, self._role = context.data, program.role
        self._batches = context.data.ranking
        self._output = main_output(program)
        self._reference = reference_outputs(program, self._batches)
        self._recalls = {
            probe.name: probe.drawn(program, context.seed, "ranking", asked_reach(reach)) for probe in probes
        }
        self._before = {
            probe.name: probe.measure(program, context.seed, "ranking", asked_reach(reach)).nats for probe in probes
        }
        asked = [recall_batch(program, recall) for recalls in self._recalls.values() for recall in recalls]
        self._run = BranchingRun(program, [*self._batches, *asked], sites)

    def cost(
        self, site: Site, stand_in: nn.Module, states: Mapping[str, torch.dtype] = MappingProxyType({})
    ) -> SiteCost:
        """What `stand_in` in place of `site` costs, where it reads some states in other dtypes."""
        outputs = (output.float() for output in self._run.outputs(site, stand_in, self._output, states))
        found = islice(outputs, len(self._batches))
        fidelity = compare_with(self._reference, found, self._data, self._batches, self._role)
        lost = {
            name: recall_score(recalls, (logits[0] for logits in islice(outputs, len(recalls)))).nats
            - self._before[name]
            for name, recalls in self._recalls.items()
        }
        error = 1.0 - fidelity.mean_cosine if fidelity.kl_divergence is None else fidelity.kl_divergence
        return SiteCost(site.output.name, site.name, error, lost)


def error_name(program: Program) -> str:
    """What the error of a site is."""
    return "KL" if is_language_model(program) else "1 - cosine"


def ranking_data(context: PassContext, probes: Sequence[RecallProbe]) -> str:
    """What sites are measured on, in words."""
    count, unit = context.data.ranking_count, context.data.unit
    told = f"{count} calibration {unit}{'' if count == 1 else 's'}"
    return f"{told}; {', '.join(probe.name for probe in probes)}" if probes else told
