"""What training takes: counted without keeping any of it, and batches cut until it fits."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from compiler.healing.end_to_end import Lesson
from compiler.healing.objectives import OutputError
from compiler.healing.resources import SAVED_SHARE, halvings_that_fit, saved_bytes

WIDTH, ROWS = 256, 64
ROW_BYTES = 4 * WIDTH


class Student(nn.Module):
    """exp saves its own output, and the product what it multiplies, which is the same."""

    def __init__(self, seen: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, width]"""
        grown = (x * self.scale).exp()
        self.seen(grown)
        return grown * self.scale


def lesson_of(student: nn.Module) -> Lesson:
    """A lesson whose student gives a tuple, as cut graphs do."""
    root = nn.Module()
    root.add_module("student", student)
    graph = fx.Graph()
    graph.output((graph.call_module("student", (graph.placeholder("x"),)),))
    teacher = fx.GraphModule(nn.Module(), fx.Graph())
    teacher.forward = lambda x: (torch.zeros_like(x) + 1,)
    return Lesson(teacher, fx.GraphModule(root, graph), OutputError(), tuple, lambda batch, found: None, None, 0)


def batch_of(rows: int) -> tuple[Tensor, ...]:
    return (torch.ones(rows, WIDTH),)


def test_nothing_that_was_counted_stays() -> None:
    alive: list[weakref.ref[Tensor]] = []
    taken = saved_bytes(lesson_of(Student(lambda one: alive.append(weakref.ref(one)))), batch_of(ROWS))
    assert taken >= 2 * ROWS * ROW_BYTES  # x * scale, or what exp gives, and what the error reads
    gc.collect()
    assert [one() for one in alive] == [None]


@pytest.mark.parametrize("halvings", [0, 1, 3])
def test_batches_are_cut_until_they_fit(halvings: int) -> None:
    sizes: list[int] = []
    lesson = lesson_of(Student(lambda one: sizes.append(len(one))))
    most = ROWS // 2**halvings
    fits = saved_bytes(lesson, batch_of(most)) / (SAVED_SHARE * 1e6)
    sizes.clear()
    assert halvings_that_fit(lesson, batch_of(ROWS), fits * 1.01) == halvings
    assert max(sizes) == most  # larger ones are not even tried


def test_what_never_fits_is_cut_as_far_as_it_goes() -> None:
    lesson = lesson_of(Student(lambda one: None))
    assert halvings_that_fit(lesson, batch_of(4), 1e-6) == 2
