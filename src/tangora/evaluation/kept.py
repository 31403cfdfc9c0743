"""The columns of a file of rows as they are, to be written again beside answers.

Reading rows for a model interprets them: a CSV's ``007`` becomes 7, a date in JSON a point in time. What is kept here
is not interpreted: texts of a CSV file, values of JSON lines, Arrow's columns of Parquet.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.errors import DataError
from tangora.support.json_text import parse_json
from tangora.tasks.recorded import kind_of
from tangora.tasks.rows import BareRows

if TYPE_CHECKING:
    from tangora.tasks.sources import Table

__all__ = ["Kept", "kept_columns", "kept_rows"]


class Kept:
    """Rows of the columns that are kept, in order; each is taken once.

    Args:
        arrow: the rows as a pyarrow table.
        left_out: the columns that are not kept, because no text holds them: images, arrays.
        rows: the rows as dictionaries, if they are not those of the table.
    """

    def __init__(self, arrow: Any, left_out: Sequence[str] = (), rows: Iterator[dict[str, Any]] | None = None) -> None:
        self._arrow, self.left_out, self._rows, self._taken = arrow, list(left_out), rows, 0

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self._arrow.column_names)

    def table(self, count: int) -> Any:
        """Return the next rows as a pyarrow table."""
        part = self._arrow.slice(self._taken, count)
        self._taken += count
        return part

    def dictionaries(self, count: int) -> list[dict[str, Any]]:
        """Return the next rows as dictionaries of JSON's values."""
        if self._rows is not None:
            return list(islice(self._rows, count))
        return [{name: _plain(value) for name, value in row.items()} for row in self.table(count).to_pylist()]


def kept_columns(columns: Mapping[str, Sequence[Any]]) -> Kept:
    """Return rows that are in memory."""
    import pyarrow  # type: ignore[import-untyped]  # deferred: an extra

    return Kept(pyarrow.table({name: list(values) for name, values in columns.items()}))


def kept_rows(path: Path, table: Table) -> Kept:
    """Return the rows of a file as they are.

    Args:
        path: the file or folder.
        table: its rows, as `tangora.tasks.recorded.read_inputs` reads them.

    Raises:
        DataError: a file of JSON lines has something other than one object on each line.
    """
    kind = kind_of(path)
    if isinstance(table, BareRows):
        return kept_columns({"image": table.column("image")})
    if kind == "csv":
        return Kept(_texts(path, table.columns))
    arrow, left_out = _arrow(table)
    if kind == "jsonl":
        return Kept(arrow, left_out, _objects(path, len(table)))
    return Kept(arrow, left_out)


def _texts(path: Path, names: Sequence[str]) -> Any:
    """Return a CSV file with every value as the text that it is."""
    import pyarrow  # deferred: an extra
    from pyarrow import csv

    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False)
    parse = csv.ParseOptions(newlines_in_values=True)
    with pyarrow.input_stream(path.expanduser(), compression="detect") as stream:
        return csv.read_csv(stream, parse_options=parse, convert_options=convert)


def _objects(path: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines, which must be as many as the rows that are answered."""
    where, fix = path, "write one object on each line"
    seen = 0
    with path.expanduser().open(encoding="utf-8-sig") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as cause:
                raise DataError(f"a line is no object ({cause})", got=seen, where=where, fix=fix) from cause
            if seen == count or not isinstance(row, dict):
                raise DataError("a line is not one object", got=seen, where=where, fix=fix)
            seen += 1
            yield row
    if seen < count:
        raise DataError("a line is not one object", got=seen, where=where, fix=fix)


def _arrow(table: Table) -> tuple[Any, list[str]]:
    """Return a table's columns that text can hold, and the names of the others."""
    import pyarrow  # deferred: an extra

    if isinstance(table.data, dict):
        lists: dict[str, Any] = {n: c for n, c in table.data.items() if not isinstance(c, np.ndarray) or c.ndim == 1}
        return pyarrow.table(lists), [name for name in table.data if name not in lists]
    whole = table.data.with_format("arrow")[:].replace_schema_metadata(None)
    binary = [field.name for field in whole.schema if "binary" in str(field.type)]
    return whole.drop_columns(binary), binary


def _plain(value: Any) -> Any:
    """Return a value in JSON's types."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
