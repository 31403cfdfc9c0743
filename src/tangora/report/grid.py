"""`Grid`: a table of text as Markdown, as LaTeX with booktabs, and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from tangora.errors import ArgumentError
from tangora.support.validation import did_you_mean

__all__ = ["FORMATS", "Cell", "Grid", "latex_text"]

FORMATS = ("md", "latex", "csv")

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "`": r"\textasciigrave{}",
    "–": "--",
    "—": "---",
    "†": r"\textdagger{}",
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "−": "$-$",
    "\u00a0": "~",
}
"""Characters that LaTeX reads as something else, or that not every engine and font has."""


@dataclass(frozen=True)
class Cell:
    """A cell of text.

    Attributes:
        text: empty for a value that does not exist.
        bold: whether it stands out.
        deviation: shown after the text and ``±``; in CSV in a column of its own.
    """

    text: str
    bold: bool = False
    deviation: str | None = None

    @property
    def shown(self) -> str:
        """The text with its deviation, or a dash."""
        return (self.text or "–") + (f" ± {self.deviation}" if self.deviation is not None else "")


@dataclass(frozen=True)
class Grid:
    """A table: columns of names, then columns of values.

    Attributes:
        names: headers of the columns of names.
        columns: headers of the columns of values.
        rows: for each row, its names and its values.
        notes: what a reader has to know; below the table, in LaTeX as comments, not in CSV.
        ruled: rows with a rule above, in LaTeX.
    """

    names: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[str], Sequence[Cell]]]
    notes: Sequence[str] = ()
    ruled: frozenset[int] = frozenset()

    def as_text(self, format: str) -> str:
        """Return the table in one of `FORMATS`.

        Raises:
            ArgumentError: there is no such format.
        """
        ways = {"md": self.markdown, "latex": self.latex, "csv": self.csv}
        if format not in ways:
            raise ArgumentError("no such format", got=format, where="--format", fix=did_you_mean(format, FORMATS))
        return ways[format]()

    def markdown(self) -> str:
        """Return a table of GitHub's Markdown, whose columns are aligned as plain text too."""
        head = [_markdown(text) for text in (*self.names, *self.columns)]
        body = [[*map(_markdown, names), *map(_cell, cells)] for names, cells in self.rows]
        widths = [max(3, *(cell_len(line[i]) for line in [head, *body])) for i in range(len(head))]
        rule = ["-" * w if i < len(self.names) else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        lines = [self._line(line, widths) for line in [head, rule, *body]]
        notes = [f"- {_markdown(note)}" for note in self.notes]
        return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"

    def _line(self, texts: Sequence[str], widths: Sequence[int]) -> str:
        padded = []
        for i, (text, width) in enumerate(zip(texts, widths, strict=True)):
            space = " " * (width - cell_len(text))
            padded.append(text + space if i < len(self.names) else space + text)
        return f"| {' | '.join(padded)} |"

    def latex(self) -> str:
        r"""Return a ``tabular`` with the rules of the package booktabs; names are escaped."""
        letters = "l" * len(self.names) + "r" * len(self.columns)
        head = " & ".join(latex_text(text) for text in (*self.names, *self.columns))
        lines = [f"% {' '.join(note.split())}" for note in self.notes]
        lines += ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{letters}}}", "\\toprule", f"{head} \\\\"]
        lines.append("\\midrule")
        for number, (names, cells) in enumerate(self.rows):
            if number in self.ruled and number:
                lines.append("\\midrule")
            line = " & ".join([*map(latex_text, names), *map(_latex_cell, cells)]) + " \\\\"
            lines.append(f"{{}}{line}" if line.startswith(("[", "*")) else line)  # else an option of the line before
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """Return comma-separated values; a value that does not exist is empty."""
        deviating = {i for _, cells in self.rows for i, cell in enumerate(cells) if cell.deviation is not None}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        headers = (h for i, c in enumerate(self.columns) for h in ([c, f"{c} sd"] if i in deviating else [c]))
        writer.writerow([*self.names, *headers])
        for names, cells in self.rows:
            writer.writerow([*names, *_flat(cells, deviating)])
        return text.getvalue()


def _flat(cells: Sequence[Cell], deviating: set[int]) -> Iterator[str]:
    for i, cell in enumerate(cells):
        yield cell.text
        if i in deviating:
            yield cell.deviation or ""


def _cell(cell: Cell) -> str:
    return f"**{_markdown(cell.shown)}**" if cell.bold else _markdown(cell.shown)


def _markdown(text: str) -> str:
    """Return a text in one line that Markdown shows as it is, as far as tables need it."""
    line = " ".join(text.split())
    return re.sub(r"[\\|*`<\[~&$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)  # inside of a word, _ is plain


def latex_text(text: str) -> str:
    """Return a text for LaTeX, in which it stands for itself.

    >>> latex_text("a_1 & 50 %")
    'a\\\\_1 \\\\& 50 \\\\%'
    """
    line = re.sub(r"[^\S\u00a0]+", " ", text)
    hyphens = (m.start() for m in re.finditer("-(?=-)", line))  # two in a row would be a dash
    apart = dict.fromkeys(hyphens, "-{}")
    return "".join(apart.get(place, _LATEX.get(character, character)) for place, character in enumerate(line))


def _latex_cell(cell: Cell) -> str:
    text = latex_text(re.sub(r"^-(?=[\di])", "−", cell.shown))  # a minus, not a hyphen
    return f"\\textbf{{{text}}}" if cell.bold else text
