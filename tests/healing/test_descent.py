"""Descent by the clock: it finds the best, stops early, comes back, and goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from healing_models import ticking
from torch import Tensor, nn

from compiler.healing.descent import Course, Descent, Settings
from compiler.healing.interruption import Interruption, interruptible
from compiler.healing.optimizers import Optimizers
from compiler.healing.wall_time import WallTime

GOAL = torch.linspace(-1, 1, 12).view(3, 4)


def problem() -> tuple[dict[str, nn.Parameter], Callable[[int], tuple[float, int]], Callable[[], float]]:
    """A matrix and a vector that are to become what they are not yet."""
    parameters = {"matrix": nn.Parameter(torch.zeros(3, 4)), "vector": nn.Parameter(torch.ones(4))}

    def loss() -> Tensor:
        return (parameters["matrix"] - GOAL).square().sum() + parameters["vector"].square().sum()

    def gradient(step: int) -> tuple[float, int]:
        value = loss()
        value.backward()
        return float(value.detach()), 7

    return parameters, gradient, lambda: float(loss().detach())


def wall(folder: Path, step: float = 0.1, budget: float = 1000.0) -> WallTime:
    return WallTime(budget, folder, ticking(step))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_reaches_the_goal_within_its_share(tmp_path: Path, optimizer: str) -> None:
    parameters, gradient, judge = problem()
    time = wall(tmp_path)
    course = Descent(parameters, gradient, judge, Settings(60, optimizer, 0.05), time).run(Interruption())
    assert course.best < 0.01 < course.start
    assert judge() == pytest.approx(course.best)
    assert 59 < time.spent < 63
    assert course.tokens == 7 * course.steps
    assert [seconds for seconds, _ in course.curve] == sorted(seconds for seconds, _ in course.curve)


def test_nothing_is_lost_where_nothing_is_gained(tmp_path: Path) -> None:
    parameters, gradient, judge = problem()

    def uphill(step: int) -> tuple[float, int]:
        found = gradient(step)
        for parameter in parameters.values():
            assert parameter.grad is not None
            parameter.grad.neg_()
        return found

    before = judge()
    course = Descent(parameters, uphill, judge, Settings(60, "adamw", 0.05), wall(tmp_path)).run(Interruption())
    assert judge() == before
    assert course.rate < 1
    assert course.stopped_early
    assert course.seconds < 60


def test_a_share_of_no_time_changes_nothing(tmp_path: Path) -> None:
    parameters, gradient, judge = problem()
    course = Descent(parameters, gradient, judge, Settings(0, "adamw", 0.05), wall(tmp_path)).run(Interruption())
    assert (course.steps, judge()) == (0, course.start)


def test_broken_gradients_are_passed_over(tmp_path: Path) -> None:
    parameters, gradient, judge = problem()

    def broken(step: int) -> tuple[float, int]:
        found = gradient(step)
        if step % 2:
            parameters["vector"].grad = torch.full((4,), torch.nan)
        return found

    course = Descent(parameters, broken, judge, Settings(60, "adamw", 0.05), wall(tmp_path)).run(Interruption())
    assert course.best < 0.1


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    parameters, gradient, judge = problem()
    settings = Settings(60, "adamw", 0.05, tmp_path / "state.pt")

    def killed(step: int) -> tuple[float, int]:
        if step == 150:
            raise SystemExit
        return gradient(step)

    with pytest.raises(SystemExit):
        Descent(parameters, killed, judge, settings, wall(tmp_path)).run(Interruption())
    fresh, gradient, judge = problem()
    again = wall(tmp_path)
    assert again.spent > 5
    steps: list[int] = []

    def counted(step: int) -> tuple[float, int]:
        steps.append(step)
        return gradient(step)

    course = Descent(fresh, counted, judge, settings, again).run(Interruption())
    assert 50 < steps[0] <= 150
    assert steps == list(range(steps[0], course.steps))
    assert course.best < 0.01
    assert 58 < again.spent < 64


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    file.write_bytes(b"PK\x03\x04 half a file")
    parameters, gradient, judge = problem()
    course = Descent(parameters, gradient, judge, Settings(60, "adamw", 0.05, file), wall(tmp_path)).run(Interruption())
    assert course.best < 0.01


def test_an_interruption_ends_it_with_the_best(tmp_path: Path) -> None:
    parameters, gradient, judge = problem()
    asked = Interruption()

    def report(course: Course) -> None:
        asked.asked = course.steps == 20

    course = Descent(parameters, gradient, judge, Settings(60, "adamw", 0.05), wall(tmp_path), report).run(asked)
    assert course.steps == 20
    assert judge() < course.start


def test_the_first_ctrl_c_asks_and_the_second_ends() -> None:
    import signal

    told: list[str] = []
    with interruptible(told.append) as asked:
        assert not asked
        signal.raise_signal(signal.SIGINT)
        assert asked
        assert "Ctrl-C again" in told[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    parameters = {
        "matrix": nn.Parameter(torch.ones(3, 4)),
        "row": nn.Parameter(torch.ones(1, 4)),
        "vector": nn.Parameter(torch.ones(4)),
    }
    optimizers = Optimizers(parameters, "muon", 0.1)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    kinds = {type(one).__name__: [len(group["params"]) for group in one.param_groups] for one in optimizers._optimizers}
    assert kinds == {"Muon": [1], "AdamW": [2]}
    optimizers.step(0.5)
    assert all(float(parameter.detach().max()) < 1 for parameter in parameters.values())
    state = optimizers.state()
    optimizers.forget()
    assert not optimizers.state()[1]["state"]
    optimizers.load(state)
    assert optimizers.state()[1]["state"]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_some_take_a_part_of_the_learning_rate(kind: str) -> None:
    parameters = {name: nn.Parameter(torch.ones(3, 3)) for name in ("whole", "tenth")}
    optimizers = Optimizers(parameters, kind, 0.1, {"tenth": 0.1})
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(0.5)
    moved = {name: 1 - one.detach() for name, one in parameters.items()}
    torch.testing.assert_close(moved["tenth"], 0.1 * moved["whole"], rtol=1e-4, atol=1e-7)
    assert float(moved["whole"].max()) > 1e-3
