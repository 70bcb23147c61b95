"""The folder of one healing, named by all that it depends on but the minutes: more of them go on from where it was.

form.json          how the teacher runs, how far batches are cut, how many judge
seconds.json       wall time spent
activations/       what flows into and out of sites; gone when they are healed
sites/             a file a stand-in that has been trained, or is being trained
end_to_end.pt      the last stage
healed.pt          all of it, finished
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compiler.content_digest import batches_digest, program_digest, tensor_digest, text_digest
from compiler.healing.descent import read_state
from compiler.healing.plan import HealingPlan, Patient
from compiler.kept_work import kept_folder, write_whole

if TYPE_CHECKING:
    from compiler.evidence.data import Batch
    from compiler.program import Program

VERSION = "healing 2"


@dataclass(frozen=True)
class Form:
    """What is measured once, on the first run: whether frozen weights are bfloat16, how often batches are halved, how
    many batches judge, and the loss that they give at first.
    """

    half: bool
    halvings: int
    judges: int
    start: float


class WorkFolder:
    """Files by what they are for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.activations = folder / "activations"
        self.end_to_end = folder / "end_to_end.pt"
        self._sites = folder / "sites"
        self._form = folder / "form.json"
        self._healed = folder / "healed.pt"
        self._sites.mkdir(parents=True, exist_ok=True)

    def site(self, index: int) -> Path:
        """Where the stand-in of a site is kept."""
        return self._sites / f"{index:04}.pt"

    def form(self) -> Form | None:
        """What an earlier run measured."""
        try:
            return Form(**json.loads(self._form.read_text(encoding="ascii")))
        except (OSError, ValueError, TypeError):
            return None

    def keep_form(self, form: Form) -> None:
        """For later runs."""
        text = json.dumps(asdict(form))
        write_whole(self._form, lambda partial: partial.write_text(text, encoding="ascii"))

    def healed(self, seconds: float) -> dict[str, Any] | None:
        """What an earlier run finished with at least that budget: parameters, record."""
        state = read_state(self._healed)
        return state if state is not None and state["record"]["budget_seconds"] >= seconds else None

    def keep_healed(self, state: dict[str, Any]) -> None:
        """For later runs."""
        write_whole(self._healed, lambda partial: torch.save(state, partial))


def work_folder(
    name: str, teacher: Program, patients: Sequence[Patient], batches: Sequence[Batch], plan: HealingPlan, seed: int
) -> WorkFolder:
    """The folder of this healing, which another run may have begun."""
    settings = plan.options.values()
    del settings["minutes"]
    tensors = [
        f"{patient.site.name} {key} {tensor_digest(one)} {patient.heal} {patient.rate}"
        for patient in patients
        for key, one in patient.module.state_dict().items()
    ]
    told = [VERSION, name, str(seed), json.dumps(settings), batches_digest(batches), program_digest(teacher)]
    return WorkFolder(kept_folder("healing", text_digest(*told, *tensors), plan.folder))
