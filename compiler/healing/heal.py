"""The whole story of healing one graft: what is kept, what is trained, for how long, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from compiler.evidence.language import TOKENS, is_language_model
from compiler.healing.activations import Activations
from compiler.healing.descent import Course, Settings, read_state
from compiler.healing.end_to_end import Lesson, distil_end_to_end
from compiler.healing.fading import fades
from compiler.healing.frozen_graph import WeightForms, frozen_graph
from compiler.healing.interruption import Interruption, interruptible
from compiler.healing.learners import Learners, find_learners, learning
from compiler.healing.objectives import cut_graphs
from compiler.healing.options import MEGABYTE
from compiler.healing.plan import Healed, HealingPlan, Patient
from compiler.healing.progress import Progress
from compiler.healing.record import HealedSite, HealingRecord
from compiler.healing.resources import REMEMBERED_SHARE, half_is_faster, halvings_that_fit
from compiler.healing.site_distillation import SiteData, StandIn, distil_site
from compiler.healing.site_views import SiteView, site_view
from compiler.healing.text_pieces import Batch, halved
from compiler.healing.wall_time import WallTime
from compiler.healing.work_folder import Form, WorkFolder, work_folder
from compiler.kept_work import held_folder
from compiler.runtime.free_memory import return_free_memory

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.rewriting import PassContext

HELD_OUT_EVERY, MOST_HELD_OUT = 8, 8
LEAST_JUDGES, JUDGE_SHARE = 2, 0.02
"""Batches that judge, and how much of the budget they may take each time."""
SITE_HELD_OUT = 4
CAPTURE_SHARE, SITE_SHARE, SITES_END = 0.1, 0.25, 0.4
"""Of the budget, at most; and where in it sites are done. What they leave over is spent end to end."""
BEST_JUDGED_APART = 15.0


def heal(
    name: str, teacher: Program, student: Program, patients: Sequence[Patient], context: PassContext
) -> Healed | None:
    """Train the modules of `patients`, which stand in `student` for sites of `teacher`; None where nothing can learn.

    Modules are changed in place. Raises CompilerError when another process heals the same in the same folder.
    """
    plan = context.healing
    batches = context.data.training or context.data.calibration
    if plan is None or len(batches) < 2:
        return None
    learners = find_learners(patients, student, plan.options.lora, context.seed)
    if not learners.all():
        return None
    context.progress(f"{name}: healing")
    work = work_folder(name, teacher, patients, batches, plan, context.seed)
    with held_folder(f"healing {name}", work.folder), interruptible(context.progress) as interruption:
        finished = work.healed(plan.options.seconds)
        if finished is not None:
            _set(learners, finished["parameters"])
            record = HealingRecord.of_json(finished["record"])
            return Healed(replace(record, resumed=True), learners.merged(student))
        with learning(patients, learners):
            record = _Healing(name, teacher, student, patients, learners, context, plan, work, interruption).run()
        if not interruption:
            state = {"parameters": _values(learners), "record": record.to_json()}
            work.keep_healed(state)
        return Healed(record, learners.merged(student))


@dataclass(frozen=True)
class _Parts:
    """Batches by what they are for. Those of the teacher's activations come first in each."""

    training: list[Batch]
    held_out: list[Batch]


class _Healing:
    """One healing that is under way."""

    def __init__(
        self,
        name: str,
        teacher: Program,
        student: Program,
        patients: Sequence[Patient],
        learners: Learners,
        context: PassContext,
        plan: HealingPlan,
        work: WorkFolder,
        interruption: Interruption,
    ) -> None:
        self.teacher, self.student = teacher, student
        self.patients, self.learners, self.work = patients, learners, work
        pairs = enumerate(zip(patients, learners.stand_ins, strict=True))
        self.alone = [index for index, (patient, own) in pairs if own and patient.alone]
        self.context, self.options, self.interruption = context, plan.options, interruption
        self.wall = WallTime(plan.options.seconds, work.folder, plan.clock)
        self.resumed = self.wall.spent > 1.0
        self.progress = Progress(name, context.progress, self.wall)
        self.parts = _split(context.data.training or context.data.calibration)
        self.tokens = _token_index(teacher)

    def run(self) -> HealingRecord:
        """Capture, heal each site, heal all together; the record of it."""
        self.progress.stage("preparing")
        form = self.work.form()
        forms = WeightForms(half=half_is_faster(self.teacher) if form is None else form.half)
        whole = frozen_graph(self.teacher, forms)
        lesson, views = self._lesson(forms)
        self.wall.keep()
        form = form or self._measured_form(lesson, half=forms.half)
        self.work.keep_form(form)
        for _ in range(form.halvings):
            self._halve()
        self.parts = _Parts(self.parts.training, self.parts.held_out[: form.judges])
        start = form.start
        first = _values(self.learners)
        began = self.wall.spent
        self.wall.keep()
        return_free_memory()
        finished = all(self.work.site(index).is_file() for index in self.alone)
        data = None if finished else self._capture(views, whole)
        captured = self.wall.spent
        sites = self._heal_sites(data, views)
        after_sites = lesson.judged(self.parts.held_out) if sites else start
        notes: tuple[str, ...] = ()
        if not after_sites <= start:
            _set(self.learners, first)
            notes = (f"trained alone, stand-ins made the whole worse ({after_sites:.4g}); they began again",)
            after_sites = start
        course = self._heal_together(lesson, after_sites)
        together = self.wall.spent - course.seconds
        if not self.interruption and data is not None:
            data.activations.clear()
        return HealingRecord(
            budget_seconds=self.options.seconds,
            seconds=self.wall.spent,
            capture_seconds=captured - began,
            site_seconds=sum(one.seconds for one in sites),
            end_to_end_seconds=course.seconds,
            steps=course.steps,
            tokens=course.tokens,
            parameters=self.learners.count,
            unit=lesson.objective.unit,
            start=start,
            after_sites=after_sites,
            end=min(course.best, course.start),
            curve=((0.0, start), *((together + seconds, loss) for seconds, loss in course.curve)),
            sites=sites,
            optimizer=self.options.optimizer,
            lora=self.options.lora,
            half=form.half,
            resumed=self.resumed,
            interrupted=bool(self.interruption),
            stopped_early=course.stopped_early,
            notes=notes,
        )

    def _measured_form(self, lesson: Lesson, *, half: bool) -> Form:
        """How far batches have to be cut, and how many may judge; this leaves the batches as they are."""
        parts = self.parts
        largest = max(parts.training, key=lambda batch: sum(one.numel() for one in batch))
        halvings = halvings_that_fit(lesson, largest, self.options.memory)
        for _ in range(halvings):
            self._halve()
        began = self.wall.spent
        lesson.judged(self.parts.held_out[:1])
        affordable = JUDGE_SHARE * self.options.seconds / max(self.wall.spent - began, 1e-6)
        judges = int(min(len(self.parts.held_out), max(LEAST_JUDGES, affordable)))
        start = lesson.judged(self.parts.held_out[:judges])
        self.parts = parts
        return Form(half, halvings, judges, start)

    def _halve(self) -> None:
        by_tokens = self.tokens is not None
        training = halved(self.parts.training, by_tokens=by_tokens)
        self.parts = _Parts(training, halved(self.parts.held_out, by_tokens=by_tokens))

    def _lesson(self, forms: WeightForms) -> tuple[Lesson, dict[int, SiteView]]:
        teacher = frozen_graph(self.teacher, forms)
        views = {index: site_view(teacher, self.patients[index].site) for index in self.alone}
        changes = {change.weight: change.module for change in self.learners.changes}
        student = frozen_graph(self.student, forms, changes)
        objective = cut_graphs(self.teacher, teacher, student)
        complete, row_mask = self.teacher.complete, self.context.data.row_mask
        remembered = int(REMEMBERED_SHARE * self.options.memory * MEGABYTE)
        return Lesson(teacher, student, objective, complete, row_mask, self.tokens, remembered), views

    def _capture(self, views: Mapping[int, SiteView], teacher: fx.GraphModule) -> SiteData:
        """Run the teacher on as many batches as disk and time allow: at first some to judge by, then some to learn."""
        placeholders = [node.name for node in self.teacher.placeholders()]
        names = {name for index in self.alone for name in views[index].kept(placeholders)}
        activations = Activations(self.work.activations, teacher, names)
        held_out = self.parts.held_out[:SITE_HELD_OUT]
        batches = [*held_out, *self.parts.training]
        until = self.wall.spent + CAPTURE_SHARE * self.options.seconds
        total, count = 0, 0
        for index, batch in enumerate(batches):
            enough = total >= self.options.disk * MEGABYTE or self.wall.spent >= until or self.interruption
            if count > len(held_out) and enough:
                break
            self.progress.say(f"running the teacher, batch {index + 1}")
            total += activations.capture(index, self.teacher.complete(batch))
            count += 1
        return_free_memory()

        def inputs(index: int) -> Mapping[str, Tensor]:
            return dict(zip(placeholders, self.teacher.complete(batches[index]), strict=True))

        return SiteData(activations, inputs, range(len(held_out), count), range(len(held_out)))

    def _heal_sites(self, data: SiteData | None, views: Mapping[int, SiteView]) -> tuple[HealedSite, ...]:
        """Each in turn gets an equal part of what is left for them; what one does not need, the next ones share."""
        own = self.alone
        until = min(self.wall.spent + SITE_SHARE * self.options.seconds, SITES_END * self.options.seconds)
        found = []
        for done, index in enumerate(own):
            patient = self.patients[index]
            stand_in = StandIn(views[index], patient.module, self.learners.stand_ins[index], patient.rate)
            seconds = max(0.0, until - self.wall.spent) / (len(own) - done)

            def report(course: Course, number: int = done) -> None:
                what = f"site {number + 1} of {len(own)}"
                self.progress.say(what, course.start, min(course.best, course.start))

            file = self.work.site(index)
            found.append(distil_site(stand_in, data, file, seconds, self.wall, self.interruption, report))
            self.wall.keep()
            return_free_memory()
        return tuple(found)

    def _heal_together(self, lesson: Lesson, start: float) -> Course:
        def report(course: Course) -> None:
            self.progress.say("end to end", start, min(course.best, course.start))

        self.progress.stage("end to end")
        settings = Settings(
            self._time_for_training(),
            self.options.optimizer,
            self.options.rate,
            self.work.end_to_end,
            judge_seconds=BEST_JUDGED_APART,
            start=start,
            fades=fades(lesson.student),
            parts=self.learners.parts(self.patients),
        )
        parameters, seed = self.learners.all(), self.context.seed
        training, held_out = self.parts.training, self.parts.held_out
        return distil_end_to_end(
            lesson, parameters, training, held_out, settings, seed, self.wall, self.interruption, report
        )

    def _time_for_training(self) -> float:
        """What is left, and what an earlier run has spent of the same share."""
        state = read_state(self.work.end_to_end)
        return self.wall.left + (0.0 if state is None else float(state["course"]["seconds"]))


def _split(batches: Sequence[Batch]) -> _Parts:
    """Batches to learn from and, evenly among them, to judge by."""
    count = min(MOST_HELD_OUT, max(1, len(batches) // HELD_OUT_EVERY))
    chosen = {index * len(batches) // count for index in range(count)}
    return _Parts(
        [one for index, one in enumerate(batches) if index not in chosen],
        [one for index, one in enumerate(batches) if index in chosen],
    )


def _token_index(program: Program) -> int | None:
    """Where the token ids of a language model stand in a batch."""
    if not is_language_model(program):
        return None
    return [spec.name for spec in program.inputs].index(TOKENS)


def _values(learners: Learners) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in learners.all().items()}


@torch.no_grad()
def _set(learners: Learners, values: Mapping[str, Any]) -> None:
    for name, one in learners.all().items():
        one.copy_(values[name])
