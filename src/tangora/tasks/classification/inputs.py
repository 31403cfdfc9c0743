"""Rows as inputs: texts, pairs of texts, and lists of words with their tags.

A word can have several tokens; the first one carries its tag, and all others are ignored (`IGNORED`). A row with more
words than the model's length holds loses the last ones. Such rows are refused and counted; or, with ``lost: outside``,
the words that were cut off get the tag `O`, and so are scored as what they are: not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from tangora.errors import DataError
from tangora.tasks.batches import IGNORED, Collator, pad
from tangora.tasks.classification.readouts import LOST
from tangora.tasks.texts import cut_rows, texts_of
from tangora.tasks.values import Encoded, Split

if TYPE_CHECKING:
    from tangora.tasks.base import Base
    from tangora.tasks.classification.settings import (
        RowSettings,
        TextBaseSettings,
        TextSettings,
        TokenBaseSettings,
        TokenSettings,
    )
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch

__all__ = ["HeadCollator", "label_tensors", "lost_words", "text_inputs", "with_tags", "word_inputs"]

Inputs = dict[str, list[Tensor] | Tensor]


@dataclass(frozen=True)
class HeadCollator(Collator):
    """Collates entries with numbers of token types, and counts of lost words, beside what `Collator` does."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of the rows."""
        batch = super().__call__(rows)
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0)
        if LOST in rows[0]:
            batch[LOST] = torch.stack([row[LOST] for row in rows])
        return batch


def texts(table: Table, config: TextSettings) -> list[list[str]]:
    """Return the column of texts, or the two columns of pairs.

    Raises:
        DataError: a column is missing, or a text is missing or empty.
    """
    columns = [config.text] if config.text_pair is None else [config.text, config.text_pair]
    return [texts_of(table, column, key) for column, key in zip(columns, ("text", "text_pair"), strict=False)]


def text_inputs(table: Table, config: TextSettings, base: Base) -> Encoded:
    """Return token ids of a text, or of two; and to which of the two each token belongs, if the model knows types.

    Raises:
        DataError: a column is missing, or a text is missing or empty.
    """
    columns = texts(table, config)
    longest = min(_settings(base).max_length, base.processor.model_max_length)
    encoded = base.processor(*columns, truncation=True, max_length=longest) if len(table) else {"input_ids": []}
    inputs: Inputs = {"input_ids": _tensors(encoded["input_ids"])}
    if len(columns) == 2 and "token_type_ids" in encoded:
        inputs["token_type_ids"] = _tensors(encoded["token_type_ids"])
    return Encoded(inputs, cut_rows(base.processor, columns, encoded["input_ids"], longest), longest)


def label_tensors(targets: Sequence[Any], config: RowSettings) -> Inputs:
    """Return the labels of rows with any number of them; other labels are the targets themselves."""
    if config.problem != "multi":
        return {}
    return {"labels": _tensors(targets)}


def word_inputs(table: Table, config: TokenSettings, base: Base) -> Encoded:
    """Return token ids of lists of words; labels are 0 where a word begins, until `with_tags`; and lost words.

    Raises:
        DataError: the column is missing; a row has no words, or more than fit; a word is empty or no text.
    """
    words = _words(table, config)
    longest = min(_settings(base).max_length, base.processor.model_max_length)
    ids, labels, lost = [], [], []
    for row, listed in enumerate(words):
        encoded = base.processor(listed, is_split_into_words=True, truncation=True, max_length=longest)
        places = encoded.word_ids()
        begins = [place is not None and place != before for place, before in zip(places, [None, *places], strict=False)]
        kept = 1 + max((place for place in places if place is not None), default=-1)
        whole = len(listed) if len(places) < longest else kept  # a row that was cut has as many tokens as fit
        if sum(begins) < whole:
            absent = next(word for i, word in enumerate(listed[:whole]) if i not in places)
            raise DataError("a word has no tokens", got=absent, where=table.place(row, config.tokens), fix="drop it")
        ids.append(encoded["input_ids"])
        labels.append([0 if begin else IGNORED for begin in begins])
        lost.append(len(listed) - kept)
    _refuse_lost(lost, words, config, table, longest)
    inputs: Inputs = {"input_ids": _tensors(ids), "labels": _tensors(labels)}
    if config.lost == "outside":
        inputs[LOST] = torch.tensor(lost, dtype=torch.int64)
    return Encoded(inputs, (row for row, count in enumerate(lost) if count), longest)


def with_tags(split: Split, tags: Sequence[str]) -> Split:
    """Return a split of words with the numbers of its targets as labels; rows without targets stay as they are."""
    numbers = {tag: i for i, tag in enumerate(tags)}
    labels = []
    for row, target in zip(split.inputs["labels"], split.targets, strict=True):
        filled = row.clone()
        if target:
            kept = int((row != IGNORED).sum())
            filled[row != IGNORED] = torch.tensor([numbers[tag] for tag in target[:kept]])
        labels.append(filled)
    return Split({**split.inputs, "labels": labels}, split.targets, cut=split.cut, longest=split.longest)


def lost_words(split: Split) -> int:
    """Return the number of words of a split that were cut off."""
    return int(torch.as_tensor(split.inputs[LOST]).sum()) if LOST in split.inputs else 0


def _words(table: Table, config: TokenSettings) -> list[list[str]]:
    table.need(config.tokens, "tokens")
    rows: list[list[str]] = []
    for row, words in enumerate(table.column(config.tokens)):
        where = table.place(row, config.tokens)
        if not isinstance(words, (list, tuple)) or not words:
            fix = "give lists of words, in JSON lines or Parquet, and drop empty rows"
            raise DataError("a row has no list of words", got=words, where=where, fix=fix)
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise DataError("a word is empty, or no text", got=word, where=where, fix="correct the row")
        rows.append(list(words))
    return rows


def _refuse_lost(
    lost: Sequence[int], words: Sequence[Sequence[str]], config: TokenSettings, table: Table, longest: int
) -> None:
    cut = [row for row, count in enumerate(lost) if count]
    empty = [row for row in cut if lost[row] == len(words[row])]
    if empty or (cut and config.lost == "refuse"):
        row = empty[0] if empty else cut[0]
        what = f"{lost[row]} of {len(words[row])} words do not fit into {longest} tokens"
        got = f"{sum(lost)} such words in {len(cut)} rows"
        fix = "raise base.max_length, split the rows" + ("" if empty else ", or set lost: outside")
        raise DataError(what, got=got, where=table.place(row, config.tokens), fix=fix)


def _tensors(rows: Sequence[Sequence[int]]) -> list[Tensor]:
    return [torch.tensor(row, dtype=torch.int64) for row in rows]


def _settings(base: Base) -> TextBaseSettings | TokenBaseSettings:
    return cast("TextBaseSettings | TokenBaseSettings", base.config)
