"""Ctrl-C while healing: the first ends it with what is healed so far, the second ends the program."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interruption:
    """Whether the user wants healing to end; false until then."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def interruptible(tell: Callable[[str], None]) -> Iterator[Interruption]:
    """Inside the block the first SIGINT only sets what is given; the next one does what it did before."""
    asked = Interruption()

    def note(number: int, frame: FrameType | None) -> None:
        asked.asked = True
        signal.signal(signal.SIGINT, previous)
        tell("ending the healing; what is healed so far stays (Ctrl-C again: end at once)")

    try:
        previous: Any = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)
