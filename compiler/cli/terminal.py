"""The terminal: progress on standard error, tables for people, plain text where nobody watches.

Names that come from models and files may hold anything; `printable` keeps control characters out of the terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.status import Status

UNLIMITED_WIDTH = 10_000
"""Nothing is wrapped or cut where the output is no terminal."""

NAME_WIDTH = 32
"""The first column of a table keeps names up to this long on one line."""

DETAIL_INTERVAL_SECONDS = 5.0
"""Where there is no spinner, details such as single sites are printed this seldom; stages always are."""


class Terminal:
    """Progress on standard error: a spinner in a terminal, plain lines elsewhere, nothing when `silent`."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self._status: Status | None = None
        self._printed_at = 0.0

    @contextmanager
    def working(self, message: str) -> Iterator[None]:
        """Show that work goes on; `progress` changes the words."""
        console = console_for(sys.stderr)
        if self.silent or not console.is_terminal:
            yield
            return
        with console.status(Text(message)) as self._status:
            yield
        self._status = None

    def progress(self, message: str) -> None:
        """Say what is being done now."""
        if self.silent:
            return
        if self._status is not None:
            self._status.update(Text(printable(message)))
            return
        detail = ": " in message
        if not detail or time.monotonic() - self._printed_at > DETAIL_INTERVAL_SECONDS:
            print(printable(message), file=sys.stderr, flush=True)
            self._printed_at = time.monotonic()

    def warn(self, message: str) -> None:
        """One line on standard error that neither --quiet nor --json silences."""
        print(f"warning: {printable(message)}", file=sys.stderr, flush=True)


def console_for(stream: TextIO) -> Console:
    """A console that interprets no markup, and wraps only in a terminal."""
    width = None if stream.isatty() else UNLIMITED_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def show(stream: TextIO, renderables: Iterable[RenderableType]) -> None:
    """Print to `stream`."""
    console = console_for(stream)
    for renderable in renderables:
        if isinstance(renderable, Table) and not console.is_terminal:
            renderable.box = None
        console.print(renderable)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of text; a header that starts with `>` marks a column of numbers."""
    cells = [[printable(cell) for cell in row] for row in rows]
    built = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, header in enumerate(headers):
        if header.startswith(">"):
            built.add_column(header[1:], justify="right", no_wrap=True)
        else:
            longest = max((len(row[index]) for row in cells), default=0)
            built.add_column(header, overflow="fold", min_width=min(longest, NAME_WIDTH if index == 0 else 0))
    for row in cells:
        built.add_row(*map(Text, row))
    return built


def line(text: str) -> Text:
    """One line of text; it may have newlines."""
    return Text("\n".join(map(printable, text.split("\n"))))


def printable(text: str) -> str:
    """`text` with control characters written out, so that a name cannot drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
