"""Read tables of text: CSV and JSON lines, in any encoding, compressed or not."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from tangora.errors import DataError
from tangora.tasks.arrays import refuse_large

__all__ = ["read_csv", "read_jsonl"]

_BLOCK = 1 << 24


def read_csv(path: Path, sep: str = ",", encoding: str | None = None) -> tuple[Any, int]:
    """Return the columns of a CSV file as a pyarrow table, and the number of lines of the file.

    Args:
        path: of the file; the ending of its name may be that of a compression.
        sep: the character between columns.
        encoding: of the text; None for UTF-8.

    Raises:
        DataError: it is too large, or not in the encoding, or a row has other columns than the header.
    """
    from pyarrow import ArrowInvalid, csv, types  # type: ignore[import-untyped]  # deferred: an extra

    options = csv.ParseOptions(newlines_in_values=True, delimiter=sep)
    content, lines = _content(path, encoding)
    try:
        table = csv.read_csv(content, parse_options=options)
    except ArrowInvalid:
        _refuse_uneven(path, sep, encoding)
        raise
    if other := [field.name for field in table.schema if types.is_binary(field.type)]:  # what is no UTF-8 is no text
        fix = "save the file in the encoding UTF-8, or name its own in source.encoding, such as cp1252"
        raise DataError("a column is not in UTF-8", got=other[0], where=path, fix=fix)
    return table, lines


def _refuse_uneven(path: Path, sep: str, encoding: str | None) -> None:
    """Raise `DataError` for the first row with more or fewer columns than the header, if there is one."""
    from pyarrow import ArrowInvalid, csv  # deferred: an extra

    found: list[Any] = []

    def note(row: Any) -> str:
        found.append(row)
        return "error"

    # On one thread, as only then are rows counted.
    reading = csv.ReadOptions(use_threads=False)
    parsing = csv.ParseOptions(newlines_in_values=True, delimiter=sep, invalid_row_handler=note)
    with contextlib.suppress(ArrowInvalid):
        csv.read_csv(_stream(path, encoding), reading, parsing)
    if not found:
        return
    row = found[0]
    with io.TextIOWrapper(_stream(path, encoding), encoding="utf-8", errors="replace") as lines:
        line = next((number for number, text in enumerate(lines, 1) if text.rstrip("\r\n") == row.text), None)
    columns = f"{row.actual_columns} column{'s' * (row.actual_columns != 1)}, and the header has {row.expected_columns}"
    where = f"{path}, row {row.number - 2}" + (f" (line {line})" if line is not None else "")  # row 1 is the header
    fix = f"quote a value that contains {sep!r}; another separator is named in source.sep"
    raise DataError(f"a row has {columns}", got=row.text, where=where, fix=fix)


def read_jsonl(path: Path, encoding: str | None = None) -> tuple[Any, int]:
    """Return the keys of a file of JSON lines as a pyarrow table, and the number of lines; see `read_csv`."""
    from pyarrow import json  # deferred: an extra

    content, lines = _content(path, encoding)
    return json.read_json(content), lines


def _content(path: Path, encoding: str | None) -> tuple[Any, int]:
    """Return the stream of a file of text, decompressed by the ending of its name, if it fits in memory; and its lines.

    A last line without a line feed counts.
    """
    size, lines, last = 0, 0, b"\n"
    try:
        with _stream(path, encoding) as stream:
            while block := stream.read(_BLOCK):
                refuse_large(size := size + len(block), path)
                lines, last = lines + block.count(b"\n"), block[-1:]
    except UnicodeError as cause:
        fix = "name the right one in source.encoding"
        raise DataError(f"not in the encoding {encoding} ({cause})", where=path, fix=fix) from cause
    return _stream(path, encoding), lines + (last != b"\n")


def _stream(path: Path, encoding: str | None) -> Any:
    """Return a stream of a file's text in UTF-8."""
    import pyarrow  # deferred: an extra

    stream = pyarrow.input_stream(path, compression="detect")
    return stream if encoding in (None, "utf-8") else pyarrow.transcoding_input_stream(stream, encoding, "utf-8")
