"""Which rows of a task lose tokens because a model reads no more: counted, recorded and said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypedDict

from tangora.support.shown import percent
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Cut", "cut_lines", "cuts"]


class Cut(TypedDict):
    """The rows of a split that are cut.

    Attributes:
        rows: how many lose tokens.
        of: how many there are.
        max_length: the number of tokens that are kept.
    """

    rows: int
    of: int
    max_length: int


def cuts(task: Task) -> dict[str, Cut]:
    """Return split -> its rows that are cut, without splits that have none.

    >>> from tangora.tasks.values import Split
    >>> rows = Split({}, [0, 1, 0], cut=frozenset({2}), longest=8)
    >>> cuts(Task("colors", "text-zero-shot", "accuracy", ["red", "blue"], {"train": rows}))
    {'train': {'rows': 1, 'of': 3, 'max_length': 8}}
    """
    return {
        name: {"rows": len(split.cut), "of": len(split), "max_length": split.longest or 0}
        for name, split in task.splits.items()
        if split.cut
    }


def cut_lines(found: Mapping[str, Mapping[str, Cut]], splits: Iterable[str] | None = None) -> Iterator[str]:
    """Yield a sentence for every split of which rows are cut.

    Args:
        found: task -> `cuts`.
        splits: only these.

    >>> list(cut_lines({"colors": {"train": {"rows": 1, "of": 3, "max_length": 8}}}))
    ['colors: 1 of 3 train rows (33 %) is cut at max_length 8']
    """
    wanted = None if splits is None else set(splits)
    for task, of_split in found.items():
        for split, cut in of_split.items():
            if wanted is None or split in wanted:
                share, verb = percent(cut["rows"], cut["of"]), "is" if cut["rows"] == 1 else "are"
                rows = f"{cut['rows']:,} of {cut['of']:,} {split} rows ({share})"
                yield f"{task}: {rows} {verb} cut at max_length {cut['max_length']}"
