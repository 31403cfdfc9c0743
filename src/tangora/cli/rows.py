"""What a user sees of the rows before a training: `tangora.tasks.overview` as a table and lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tangora.cli.terminal import console
from tangora.support.shown import percent

if TYPE_CHECKING:
    from tangora.report.wide import Wide
    from tangora.tasks.overview import Overview, SplitOverview, Spread

__all__ = ["overview_document", "overview_lines", "overview_table"]

_ALL = 6  # classes that are listed one by one
_ENDS = 2  # of more classes, the largest and the smallest ones that are named
_LEAST = 20  # characters of a line with an example on a narrow terminal
_EXAMPLE = 800  # characters of an example
# Where an example may be broken: after a space or an escape, and around special tokens such as <|im_end|> and [SEP].
_PIECES = re.compile(r"<[^<>\s]+>|\[[A-Z]+\]|\\.|\s|(?:(?!<[^<>\s]+>|\[[A-Z]+\]|\\)\S)+\s?")


def overview_table(overviews: Mapping[str, Overview]) -> Wide:
    """Return a table of the number of rows in each split, with a row for each task."""
    from tangora.report.wide import Column, Wide  # deferred: with the readers of a run, which --help does without

    splits = dict.fromkeys(split for one in overviews.values() for split in one.splits)
    columns = [Column(split, [_cell(one.splits.get(split)) for one in overviews.values()]) for split in splits]
    return Wide("rows", Column("task", list(overviews), numbers=False), columns)


def overview_lines(overview: Overview, width: int | None = None) -> Iterator[str]:
    """Yield what a task's rows are like, line by line.

    Args:
        overview: of the task.
        width: characters of a line with an example; by default the terminal's.
    """
    train = overview.splits["train"]
    tokens = _tokens(train)
    yield f"{overview.task}: {_kind(overview)} by {', '.join(overview.metrics)}" + (f"; {tokens}" if tokens else "")
    yield from (f"  {line}" for line in _measured(overview))
    for split, one in overview.splits.items():
        if one.counts is not None and (split == "train" or len(one.counts) <= _ALL):
            yield f"  {split}: {_counted(one.counts, 'words' if overview.answers == 'tags' else 'rows')}"
        if one.numbers is not None:
            yield f"  {split}: {'bytes' if overview.answers == 'likelihood' else 'numbers'} {_spread(one.numbers)}"
    if overview.names_read:
        yield _fitted("  class name: ", ", ".join(f'"{name}"' for name in overview.names_read), width)
    if overview.example is not None:
        yield from _wrapped("  reads:   ", overview.example.prompt, width)
        if overview.example.answer is not None:
            yield from _wrapped("  answers: ", overview.example.answer, width)


def overview_document(overviews: Mapping[str, Overview]) -> dict[str, Any]:
    """Return the overviews as JSON, with the share of rows that are cut."""
    documents = {}
    for name, one in overviews.items():
        splits = {
            split: {**vars(of_split), "cut_share": of_split.cut / of_split.converted if of_split.converted else 0.0}
            for split, of_split in one.splits.items()
        }
        documents[name] = {**vars(one), "splits": splits}
    return documents


def _cell(split: SplitOverview | None) -> str:
    if split is None:
        return ""
    return f"{split.rows:,}"


def _kind(overview: Overview) -> str:
    if overview.classes:
        return f"{len(overview.classes)} {'tags' if overview.answers == 'tags' else 'classes'}"
    return {"number": "numbers", "likelihood": "plain texts"}.get(overview.answers, "texts")


def _tokens(train: SplitOverview) -> str:
    if train.prompt_tokens is None:
        return ""
    if train.answer_tokens is None:
        return f"tokens {_spread(train.prompt_tokens)}"
    return f"tokens of prompts {_spread(train.prompt_tokens)}, of answers {_spread(train.answer_tokens)}"


def _measured(overview: Overview) -> Iterator[str]:
    """Yield which rows are cut, or that none is, and that lengths are of a sample."""
    splits, longest = overview.splits.items(), overview.splits["train"].max_length
    if any(one.cut for _, one in splits):
        shares = ", ".join(f"{percent(one.cut, one.converted)} of {split}" for split, one in splits)
        yield f"cut at max_length {longest}: {shares}"
    elif longest is not None:
        yield f"cut at max_length {longest}: none of {sum(one.converted for _, one in splits):,} rows"
    if sampled := [f"{one.converted:,} of {one.rows:,} {split}" for split, one in splits if one.converted < one.rows]:
        yield f"tokens and cuts are those of a sample: {', '.join(sampled)} rows"


def _spread(spread: Spread) -> str:
    if spread.least == spread.most:
        return f"{spread.least:g}"
    return f"{spread.least:g} to {spread.most:g} (median {spread.median:g})"


def _counted(counts: Mapping[str, int], of: str) -> str:
    if len(counts) <= _ALL:
        return ", ".join(f"{name} ({count:,})" for name, count in counts.items())
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    ends = (", ".join(f"{name} ({count:,})" for name, count in part) for part in (ordered[:_ENDS], ordered[-_ENDS:]))
    least, most = min(counts.values()), max(counts.values())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{each} {of} each" + ("" if least == most else f"; {', ..., '.join(ends)}")


def _wrapped(prefix: str, text: str, width: int | None) -> Iterator[str]:
    """Yield lines that fit the terminal. They can be joined again: each has its last space, and breaks are escaped."""
    room = max((width or console().width) - len(prefix), _LEAST)
    for number, line in enumerate(_lines(_shortened(_escaped(text), _EXAMPLE), room)):
        yield (" " * len(prefix) if number else prefix) + line


def _lines(text: str, room: int) -> Iterator[str]:
    """Yield lines of at most ``room`` characters, between pieces; a piece that is longer is broken."""
    line = ""
    for piece in _PIECES.findall(text):
        if line and len(line) + len(piece) > room:
            yield line
            line = ""
        while len(piece) > room:
            yield piece[:room]
            piece = piece[room:]
        line += piece
    yield line


def _fitted(prefix: str, text: str, width: int | None) -> str:
    """Return a line that fits the terminal."""
    return prefix + _shortened(_escaped(text), max((width or console().width) - len(prefix), _LEAST))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def _shortened(line: str, most: int) -> str:
    """Return beginning and end of a longer text: special tokens are at both."""
    if len(line) <= most:
        return line
    half = (most - 3) // 2
    return f"{line[: most - 3 - half]} … {line[len(line) - half :]}"
