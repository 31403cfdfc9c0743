"""`Wide`: a table for the terminal that continues in a table below if its columns do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from tangora.support.printable import printable

__all__ = ["Column", "Wide"]

_GAP = 2  # between two columns: rich's padding and the box's divider


@dataclass(frozen=True)
class Column:
    """A column: its header, and a cell for each row. Both are plain text, not markup.

    Args:
        header, cells: text.
        most: the largest width; longer text is wrapped.
        numbers: align to the right, and never wrap.
    """

    header: str
    cells: Sequence[str]
    most: int = 40
    numbers: bool = True

    @property
    def width(self) -> int:
        """The width in characters."""
        cells = max((cell_len(printable(cell)) for cell in self.cells), default=0)
        header = cell_len(printable(self.header))
        return max(cells, min(header, self.most)) if self.numbers else min(max(cells, header), self.most)


@dataclass(frozen=True)
class Wide:
    """A table in parts that each start with the first column.

    Args:
        title: of the table.
        key: the first column.
        columns: the others; each part has as many as fit.
        ruled: rows with a line above them.
        bold: rows in bold.
    """

    title: str
    key: Column
    columns: Sequence[Column]
    ruled: frozenset[int] = field(default_factory=frozenset)
    bold: frozenset[int] = field(default_factory=frozenset)

    def parts(self, width: int) -> Iterator[list[Column]]:
        """Yield the columns of each part, without the first one; at least one per part."""
        part: list[Column] = []
        left = room = width - self._key_width(width)
        for column in self.columns:
            if part and column.width + _GAP > left:
                yield part
                part, left = [], room
            part.append(column)
            left -= column.width + _GAP
        yield part

    def _key_width(self, width: int) -> int:
        return min(self.key.width, max(width // 2, 1))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for index, part in enumerate(self.parts(options.max_width)):
            yield Text(printable(self.title) + (", continued" if index else ""), style="italic")
            yield self._table(part, options.max_width)
            yield Text()

    def _table(self, part: Sequence[Column], width: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(Text(printable(self.key.header)), overflow="fold", max_width=self._key_width(width))
        for column in part:
            side: Literal["left", "right"] = "right" if column.numbers else "left"
            room = min(column.width, max(width - self._key_width(width) - _GAP, 1))
            table.add_column(
                Text(_broken(printable(column.header), room)), justify=side, overflow="fold", max_width=room
            )
        for row, name in enumerate(self.key.cells):
            if row in self.ruled and row:
                table.add_section()
            style = "bold" if row in self.bold else None
            table.add_row(Text(printable(name)), *(Text(printable(column.cells[row])) for column in part), style=style)
        return table


def _broken(header: str, width: int) -> str:
    """Return the header in lines of that width, broken after ``_``, ``-`` and the like if possible."""
    lines = [""]
    for part in re.findall(r"[^_\-./ ]*[_\-./ ]?", header):
        if lines[-1] and cell_len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)
