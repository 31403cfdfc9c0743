"""The output of a command: its result on stdout, as text or as one JSON document, and everything else on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from tangora.cli.terminal import printing, say, show
from tangora.progress import Progress
from tangora.support.printable import printable

__all__ = ["Output", "as_json"]

# Control characters that JSON allows in strings, but a terminal obeys; escaped, they are the same data.
_ESCAPED = {code: f"\\u{code:04x}" for code in range(127, 160)}


@dataclass(frozen=True)
class Output:
    """The output of one command.

    Args:
        json: print results as JSON.
        quiet: print no progress and no notes.
    """

    json: bool = False
    quiet: bool = False

    def result(self, document: Mapping[str, Any], *shown: RenderableType) -> None:
        """Print the result on stdout: ``shown`` to a person, ``document`` to a program.

        Strings are printed as they are, not as rich's markup. In JSON, paths are absolute, and numbers that are not
        finite are null.
        """
        if self.json:
            with printing():
                print(as_json(document))
        else:
            show(*shown)

    def text(self, document: Mapping[str, Any], text: str) -> None:
        """Print a text as it is, in lines that the terminal does not break: something to be copied or redirected."""
        if self.json:
            self.result(document)
        else:
            with printing():
                print(printable(text.rstrip("\n"), lines=True, most=len(text)))

    def note(self, *lines: str) -> None:
        """Print something worth knowing, beside the result, on stderr."""
        if not self.quiet:
            for line in lines:
                say(line)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show progress on stderr for the length of the block."""
        if self.quiet:
            yield Progress()
            return
        from tangora.cli.bars import Bars  # deferred: rich's bars take longer to import than a command to run

        with Bars() as drawn:
            yield drawn


def as_json(document: Mapping[str, Any]) -> str:
    """Return a document as JSON, as `Output.result` prints it."""
    text = json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    return text.translate(_ESCAPED)


def _plain(value: Any) -> Any:
    """Return the value in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value.resolve())
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if hasattr(value, "item"):  # a number of NumPy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
