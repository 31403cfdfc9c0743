"""Rows of Python values as a table: mappings of columns, or bare values for tasks that read one column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tangora.errors import ArgumentError, DataError
from tangora.tasks.sources import Table

__all__ = ["BareRows", "refuse_several_columns", "table_of"]

_FIX = "give a list: texts or images, or mappings of the columns that the task reads"


def table_of(rows: Sequence[Any], where: str = "rows") -> Table:
    """Return rows as a table.

    Args:
        rows: mappings of columns to values; or bare values, such as texts, images or names of image files, which are in
            whichever column a task reads.
        where: their name in errors.

    Raises:
        ArgumentError: there are no rows, or one value is given in place of a list.

    >>> table_of([{"text": "good"}, {"text": "bad", "id": 7}]).column("id")
    [None, 7]
    >>> table_of(["good", "bad"]).column("sentence")
    ['good', 'bad']
    """
    if isinstance(rows, str | bytes | Mapping) or not hasattr(rows, "__len__"):
        raise ArgumentError("rows are a list", got=type(rows).__name__, where=where, fix=_FIX)
    if not len(rows):
        raise ArgumentError("no rows", got=0, where=where, fix="give at least one")
    mappings = [isinstance(row, Mapping) for row in rows]
    if any(mappings) and not all(mappings):
        odd = mappings.index(not mappings[0])
        fix = "give all rows in one of these forms"
        raise DataError("some rows are mappings of columns, others are not", got=odd, where=where, fix=fix)
    if not all(mappings):
        return BareRows(_Everywhere(rows), where, {})
    names = dict.fromkeys(name for row in rows for name in row)
    return Table({name: [row.get(name) for row in rows] for name in names}, where, {})


def refuse_several_columns(table: Table) -> None:
    """Refuse bare values that were read as more than one column; call it once rows have been encoded.

    Raises:
        DataError: names the columns.
    """
    read = table.read if isinstance(table, BareRows) else []
    if len(read) > 1:
        fix = f"give each row as a mapping of {', '.join(read)}"
        raise DataError("the task reads several columns", got=f"{len(table)} bare values", where=table.where, fix=fix)


class _Everywhere(dict[str, Any]):
    """A table's columns: each has the same values, and those that were read are recorded."""

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__()
        self.shared, self.read = values, dict[str, None]()

    def __getitem__(self, name: str) -> Sequence[Any]:
        self.read[name] = None
        return self.shared


class _AnyName(list[str]):
    """The names of all columns."""

    def __contains__(self, name: object) -> bool:
        return True


@dataclass(frozen=True)
class BareRows(Table):
    """Values without the name of their column."""

    data: _Everywhere

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.data.shared)

    @property
    def columns(self) -> list[str]:
        """Every name."""
        return _AnyName()

    @property
    def read(self) -> list[str]:
        """The columns that were read."""
        return list(self.data.read)

    def rows(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Iterate over the rows as dictionaries."""
        columns = {name: self.data[name] for name in names}
        return ({name: values[i] for name, values in columns.items()} for i in range(len(self)))

    def select(self, rows: Sequence[int]) -> BareRows:
        """Return the rows with these numbers, in this order."""
        numbers = [self.numbers[i] for i in rows] if self.numbers is not None else list(rows)
        shared: Any = self.data.shared
        picked = shared[list(rows)] if hasattr(shared, "dtype") else [shared[i] for i in rows]
        return BareRows(_Everywhere(picked), self.where, self.class_names, numbers)
