"""``python -m tangora.methods [FILE]``: the table of methods, printed, or written between the markers in a file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tangora.methods._table import table
from tangora.support.files import write_text


def main() -> None:
    """Print the table, or write it between the ``<!-- methods ... -->`` markers of a file."""
    if len(sys.argv) < 2:
        print(table(), end="")
        return
    path = Path(sys.argv[1])
    text = path.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- methods.*?-->\n).*?(<!-- /methods -->)", re.DOTALL)
    write_text(path, marked.sub(lambda match: match[1] + table() + match[2], text))


if __name__ == "__main__":
    main()
