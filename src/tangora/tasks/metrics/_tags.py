"""Tags of words: their number in a row, and the spans that they mark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tangora.errors import ArgumentError

__all__ = ["check_lengths", "spans"]

_PREFIXES = "BIES"


def check_lengths(metric: str, predictions: Sequence[Sequence[Any]], targets: Sequence[Sequence[Any]]) -> None:
    """Raise if a row has more or fewer predicted tags than words.

    Raises:
        ArgumentError: names the first such row.
    """
    for row, (predicted, actual) in enumerate(zip(predictions, targets, strict=True)):
        if len(predicted) != len(actual):
            got = f"{len(predicted)} tags for {len(actual)} words in row {row}"
            raise ArgumentError("a metric needs one tag for each word", got=got, where=metric)


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the spans of a row as (type, first word, word after the last), by the rules of ``conlleval``.

    A span ends before ``O``, ``B``, ``S`` and a tag of another type, and after ``E`` and ``S``. Any tag but ``O`` is in
    a span, so that a span may also begin with ``I`` or ``E``.

    Raises:
        ArgumentError: a tag is neither ``O`` nor ``B``, ``I``, ``E`` or ``S`` with a type.

    >>> sorted(spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
    """
    found, start, before, kind = set(), 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, own = _parts(tag)
        begins = prefix in "BS" or before in "OES" or own != kind
        if before != "O" and (prefix == "O" or begins):
            found.add((kind, start, place))
        if prefix != "O" and begins:
            start = place
        before, kind = prefix, own
    return found


def _parts(tag: str) -> tuple[str, str]:
    prefix, _, kind = tag.partition("-")
    if prefix == "O" and not kind:
        return prefix, ""
    if len(prefix) != 1 or prefix not in _PREFIXES:
        fix = "give tags such as B-PER, I-PER and O, or score them by tag_accuracy"
        raise ArgumentError("a tag marks no span", got=tag, where="span_f1", fix=fix)
    return prefix, kind
