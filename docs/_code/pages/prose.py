"""Docstrings as Markdown, and the few forms of Markdown that several pages need."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Docstring", "cell", "marked", "reference_link", "table"]

_SECTIONS = re.compile(r"(Args|Attributes|Raises|Returns|Yields):\n")
_SITES = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}


def marked(text: str) -> str:
    """Return a docstring's text as Markdown: one kind of code, and papers as links.

    >>> marked("``x < 1`` as in `ties` (arXiv:2306.01708, section 2)")
    '`x < 1` as in `ties` ([arXiv:2306.01708](https://arxiv.org/abs/2306.01708), section 2)'
    """
    parts = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.DOTALL)
    return "".join(_code(part) if part.startswith("`") else _linked(part) for part in parts)


def _code(part: str) -> str:
    inside = " ".join(part.strip("`").split())
    return f"`{inside}`"


def _linked(part: str) -> str:
    part = re.sub(r"(?<!\[)\barXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", part)
    part = re.sub(r"(?<!\[)\bdoi:(10\.\S+?)(?=[),;]?(?:\s|$)|[),;])", r"[doi:\1](https://doi.org/\1)", part)
    return part.replace("<", "&lt;").replace("*", r"\*").replace("|", "&#124;").replace("_", r"\_")


def reference_link(reference: str) -> str:
    """Return a source as a link if it is a paper: ``arXiv:NUMBER`` or ``doi:NUMBER``."""
    kind, _, number = reference.partition(":")
    return f"[{reference}]({_SITES[kind]}{number})" if kind in _SITES else reference


def cell(text: str) -> str:
    """Return text that ends no cell of a table.

    >>> cell("a | b")
    'a \\\\| b'
    """
    return " ".join(text.replace("|", "\\|").split())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@dataclass(frozen=True)
class Docstring:
    """A docstring in its parts.

    Attributes:
        summary: the first line.
        paragraphs: the text between the summary and the sections.
        sections: by title, such as ``Args``: names and texts.
        example: the doctest, with its prompts.
    """

    summary: str
    paragraphs: tuple[str, ...]
    sections: dict[str, dict[str, str]]
    example: str

    @classmethod
    def of(cls, thing: Any) -> Docstring:
        """Return the parts of the docstring of a function, a class or an object."""
        summary, _, rest = (inspect.getdoc(thing) or "").partition("\n")
        paragraphs, sections, examples = [], {}, []
        for block in re.split(r"\n\s*\n", rest.strip()):
            if block.lstrip().startswith(">>>"):
                examples.append(block)
            elif found := _SECTIONS.match(block):
                sections[found[1]] = dict(_items(block[found.end() :]))
            elif block.strip():
                paragraphs.append(block)
        return cls(summary, tuple(paragraphs), sections, "\n\n".join(examples))


def _items(block: str) -> Iterator[tuple[str, str]]:
    """The names of a section and what it says of them; a deeper line continues the one before."""
    lines: list[str] = []
    for line in inspect.cleandoc(block).splitlines():
        if line.startswith(" ") and lines:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    for line in lines:
        name, _, text = line.partition(": ")
        yield name, text
