"""For mkdocstrings: the docstrings of the package as Markdown, with doctests and literal blocks as blocks of code."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Plain", "fenced"]


def fenced(text: str) -> str:
    """Return a docstring whose examples are blocks of code, and whose ``::`` and double backticks are Markdown's."""
    parts = []
    for block in re.split(r"\n[ ]*\n", text):
        if block.lstrip().startswith(">>>"):
            block = f"```pycon\n{block}\n```"
        elif parts and parts[-1].rstrip().endswith("::") and block.startswith("    "):
            parts[-1] = parts[-1].rstrip()[:-1]
            lines = "\n".join(line.removeprefix("    ") for line in block.splitlines())
            block = f"```python\n{lines}\n```"
        parts.append(block)
    return re.sub(r"(?<!`)``(?!`)", "`", "\n\n".join(parts))


class Plain(griffe.Extension):
    """Applies `fenced` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change one object's docstring."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
