"""A text that is the result of a command: printed as it is, or written to a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tangora.cli.output import Output, as_json

__all__ = ["write_or_print"]


def write_or_print(
    output: Output, document: Mapping[str, Any], text: str | None, out: Path | None, *, overwrite: bool
) -> None:
    """Print a result, or write it to a file.

    Args:
        output: of the command.
        document: the result for a program.
        text: the result as it is written; None for the document as JSON.
        out: the file; None to print.
        overwrite: replace an existing file.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    if out is None:
        if text is None:
            Output(json=True).result(document)
        else:
            output.text(document, text)
        return
    from tangora.support.files import atomic_file  # deferred: --help writes nothing

    with atomic_file(out, overwrite=overwrite) as scratch:
        scratch.write_text(as_json(document) + "\n" if text is None else text, encoding="utf-8")
    output.result({**document, "out": out}, f"table: {out.resolve()}")
