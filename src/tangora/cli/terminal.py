"""Print text and tables to the terminal, with names as plain text, never as markup."""

from __future__ import annotations

import os
import select
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from tangora.errors import OutputError
from tangora.support.printable import printable

__all__ = ["WIDTH", "console", "in_notebook", "moves", "printing", "reader_is_gone", "say", "show"]

WIDTH = 80
"""Width if the output is not a terminal (a pipe, a file, a log). ``COLUMNS`` in the environment takes precedence."""


class _Plain(Console):
    """A console that treats every string as plain text."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text without markup, with control characters spelled out."""
        return super().render_str(printable(text, lines=True), **{**options, "markup": False, "emoji": False})

    def on_broken_pipe(self) -> None:
        """Leave the error to `printing`; rich would end the program."""
        raise


def console(*, stderr: bool = False, **options: Any) -> Console:
    """Return a console for stdout or stderr as it is now, on which markup in names has no effect."""
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream is not None and stream.isatty()
    made = _Plain(stderr=stderr, markup=False, emoji=False, highlight=False, **options)
    if not terminal and "COLUMNS" not in made._environ:
        made.width = WIDTH
    return made


def in_notebook() -> bool:
    """Return whether a cell of a notebook runs this command (``!tangora ...``).

    It claims to be a terminal. But it keeps every line that is drawn over, and nobody can answer a question.
    """
    return "JPY_PARENT_PID" in os.environ


def moves(printer: Console) -> bool:
    """Return whether a console is a terminal that draws over its own lines."""
    return printer.is_terminal and not printer.is_dumb_terminal and not in_notebook()


@contextmanager
def printing() -> Iterator[None]:
    """Print on stdout within this block; a reader that stops reading, such as ``| head``, is not an error.

    Raises:
        OutputError: stdout leads to a file that cannot be written.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):  # which a console of rich ends the program for
            raise
        _drop(sys.stdout)
    except OSError as cause:
        _drop(sys.stdout)
        fix = "free the disk, or redirect the output elsewhere"
        raise OutputError(f"the result cannot be printed ({cause.strerror})", where="stdout", fix=fix) from cause


def reader_is_gone() -> bool:
    """Return whether stdout is a pipe without a reader."""
    if sys.__stdout__ is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.__stdout__.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _drop(stream: TextIO) -> None:
    """Discard the rest of the buffer, which the interpreter otherwise tries to write again when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show(*renderables: RenderableType) -> None:
    """Print on stdout. A string is one line, which a terminal shows broken between words; tables fit the width."""
    printer = console()
    with printing():
        for renderable in renderables:
            _print(printer, renderable)


def say(line: str) -> None:
    """Print a line on stderr."""
    try:
        _print(console(stderr=True), line)
    except OSError:  # there is no reader
        _drop(sys.stderr)


def _print(printer: Console, renderable: RenderableType) -> None:
    if not isinstance(renderable, str):
        printer.print(renderable)
        return
    renderable = printable(renderable)
    lines = [renderable]
    if printer.is_terminal:  # a long path stays in one piece, to be copied
        indent = " " * (len(renderable) - len(renderable.lstrip()) + 2)
        options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
        lines = textwrap.wrap(renderable, printer.width, **options) or lines  # type: ignore[arg-type]
    for line in lines:
        printer.print(Text(line), soft_wrap=True)
