"""Healing in a pipeline: what it gains, what it leaves alone, what it keeps between runs."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from healing_models import AddNoise, Hush, healing_context, tiny_program, token_data

from compiler.errors import CompilerError
from compiler.healing.plan import HealingPlan
from compiler.healing.record import HealingRecord
from compiler.kept_work import held_folder
from compiler.pipeline import PassRecord, Pipeline
from compiler.program import Program
from compiler.rewriting import Graft, PassContext

STEP = 0.12
"""Seconds that the clock goes on by when it is read: a minute is some two hundred steps."""
NARROW = 2e-3
"""A learning rate for layers of 16 numbers."""


@pytest.fixture(scope="module")
def program() -> Program:
    return tiny_program()


def run(graft: Graft, program: Program, context: PassContext) -> tuple[Program, PassRecord]:
    after, _, records = Pipeline([graft], context).run(program)
    return after, records[0]


def healing_of(record: PassRecord) -> HealingRecord:
    assert record.result.healing is not None
    return record.result.healing


def divergence(record: PassRecord) -> float:
    assert record.evidence.fidelity is not None
    assert record.evidence.fidelity.kl_divergence is not None
    return record.evidence.fidelity.kl_divergence


@dataclass(frozen=True)
class Healed:
    """A healing of noisy layers that has been finished."""

    folder: Path
    program: Program
    record: PassRecord


@pytest.fixture(scope="module")
def healed(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Healed:
    folder = tmp_path_factory.mktemp("healed")
    return Healed(folder, *run(AddNoise(), program, healing_context(folder, step=STEP)))


def test_stand_ins_learn_alone_and_together(program: Program, healed: Healed) -> None:
    healing = healing_of(healed.record)
    assert healing.start > healing.after_sites > healing.end
    assert divergence(healed.record) < healing.start / 4
    assert [site.site for site in healing.sites] == ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]
    assert all(site.kept and site.after < site.before for site in healing.sites)
    assert 55 < healing.seconds < 75
    assert healing.unit == "KL, nats a token"
    assert healing.tokens == healing.steps * 4 * 24
    assert healing.parameters == 4 * 512
    assert not any((healing.resumed, healing.interrupted))
    assert program.text() == tiny_program().text()
    bias = healed.program.weight("blocks.0.up.add_noise.bias")
    torch.testing.assert_close(bias, program.weight("blocks.0.up.bias"), rtol=0, atol=0)
    assert not list(healed.folder.glob("healing/*/activations/*"))


def test_layers_around_sites_learn_where_stand_ins_cannot(program: Program, tmp_path: Path) -> None:
    after, record = run(Hush(), program, healing_context(tmp_path, step=STEP, rate=NARROW))
    healing = healing_of(record)
    assert healing.sites == ()
    assert healing.parameters == 2 * 4 * 2 * 16 * 16
    assert divergence(record) < healing.start / 2
    changed = {name for name, weight in after.weights().items() if not torch.equal(weight, program.weight(name))}
    assert changed == {f"blocks.{i}.{role}.weight" for i in (0, 1) for role in ("query", "key", "value", "output")}


def test_without_ranks_and_parameters_nothing_is_healed(program: Program, tmp_path: Path) -> None:
    assert run(Hush(), program, healing_context(tmp_path, lora=0))[1].result.healing is None
    assert run(AddNoise(heal=()), program, healing_context(tmp_path))[1].result.healing is None
    assert not list(tmp_path.iterdir())


def test_sites_that_go_back_take_their_layers_along(program: Program, tmp_path: Path) -> None:
    context = replace(healing_context(tmp_path, step=STEP), max_drop=0.0)
    after, record = run(Hush(), program, context)
    assert {outcome.state for outcome in record.result.outcomes} == {"returned"}
    assert after.text() == program.text()
    assert all(torch.equal(weight, program.weight(name)) for name, weight in after.weights().items())


def test_encoders_learn_their_outputs(tmp_path: Path) -> None:
    program = tiny_program("encoder")
    _, record = run(AddNoise(), program, healing_context(tmp_path, step=STEP, optimizer="muon", rate=NARROW))
    healing = healing_of(record)
    assert healing.unit == "squared error + 1 - cosine"
    assert healing.end < healing.start / 4
    assert healing.tokens == healing.steps
    assert record.evidence.fidelity is not None
    assert record.evidence.fidelity.mean_cosine > 0.98


def test_what_is_finished_is_not_done_again(program: Program, healed: Healed) -> None:
    messages: list[str] = []
    again = replace(healing_context(healed.folder, step=STEP), progress=messages.append)
    second, repeated = run(AddNoise(), program, again)
    assert healing_of(repeated) == replace(healing_of(healed.record), resumed=True)
    assert not any("site 1" in message for message in messages)
    ids = torch.randint(0, 48, (1, 9))
    torch.testing.assert_close(healed.program.run(ids)[0], second.run(ids)[0], rtol=0, atol=0)


def test_more_minutes_go_on_from_what_is_finished(program: Program, healed: Healed, tmp_path: Path) -> None:
    copied = shutil.copytree(healed.folder, tmp_path / "copied")
    longer = healing_of(run(AddNoise(), program, healing_context(copied, minutes=1.5, step=STEP))[1])
    first = healing_of(healed.record)
    assert longer.resumed
    assert longer.end < first.end
    assert longer.steps > first.steps
    assert 85 < longer.seconds < 105
    assert longer.sites == first.sites


def test_other_data_and_options_are_other_work(program: Program, tmp_path: Path) -> None:
    contexts = [
        healing_context(tmp_path, minutes=0.02, step=STEP),
        healing_context(tmp_path, minutes=0.02, step=STEP, lora=4),
        healing_context(tmp_path, minutes=0.02, step=STEP, data=token_data(16)),
    ]
    for count, context in enumerate(contexts, 1):
        run(AddNoise(), program, context)
        assert len(list((tmp_path / "healing").iterdir())) == count
    run(AddNoise(noise=0.4), program, contexts[0])
    assert len(list((tmp_path / "healing").iterdir())) == 4


def test_ctrl_c_keeps_what_is_healed(program: Program, tmp_path: Path) -> None:
    def stop(message: str) -> None:
        if "end to end  loss" in message:
            signal.raise_signal(signal.SIGINT)

    _, record = run(AddNoise(), program, replace(healing_context(tmp_path, step=STEP), progress=stop))
    healing = healing_of(record)
    assert healing.interrupted
    assert healing.seconds < 50
    assert divergence(record) < 0.8 * healing.start
    _, record = run(AddNoise(), program, healing_context(tmp_path, step=STEP))
    assert not healing_of(record).interrupted
    assert healing_of(record).resumed
    assert healing_of(record).end < healing.end


def test_two_compiles_do_not_heal_in_one_folder(program: Program, healed: Healed) -> None:
    (folder,) = (healed.folder / "healing").iterdir()
    with held_folder("testing", folder), pytest.raises(CompilerError, match="another compile works in") as caught:
        run(AddNoise(), program, healing_context(healed.folder))
    assert "add-noise" in caught.value.doing


def test_little_memory_cuts_batches(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.healing.resources.MEGABYTE", 200)
    monkeypatch.setattr("compiler.healing.text_pieces.LEAST_TOKENS", 6)
    healing = healing_of(run(AddNoise(), program, healing_context(tmp_path, step=STEP, memory=64))[1])
    assert healing.tokens < healing.steps * 4 * 24
    assert healing.end < healing.start / 4


def test_one_batch_is_too_little_to_judge_by(tmp_path: Path, program: Program) -> None:
    data = replace(token_data(1), calibration=())
    assert run(AddNoise(), program, healing_context(tmp_path, data=data))[1].result.healing is None


@dataclass(frozen=True)
class AddLess(AddNoise):
    """A second graft, which needs less time."""

    name = "add-less"
    healing_weight = 0.25


def test_grafts_share_the_time(program: Program, tmp_path: Path) -> None:
    _, _, records = Pipeline([AddNoise(), AddLess()], healing_context(tmp_path, minutes=0.1, step=STEP)).run(program)
    assert [healing_of(record).budget_seconds for record in records] == pytest.approx([4.8, 1.2])


def test_a_record_is_read_as_it_was_written() -> None:
    plan = healing_context(Path()).healing
    assert isinstance(plan, HealingPlan)
    assert plan.share(0.0) is None
    record = HealingRecord(
        60.0, 61.0, 1.0, 2.0, 3.0, 4, 5, 6, "KL", 0.5, 0.4, 0.3, ((0.0, 0.5),), (), "adamw", 16, half=False
    )
    assert HealingRecord.of_json(record.to_json()) == record
