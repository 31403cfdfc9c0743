"""Vocabularies that grew: find the models that have a token, by the ids of their tokenizers, and choose a tokenizer.

A row that the base has is fused like any other. A row beyond the base's has nothing to differ from: for every method
and all weights it is the mean of the models with a token of that id in their tokenizer. If there is none, the row is
padding, and the mean of the models that have it. No token is lost: the output's tokenizer is the first that has all.

If no model has more rows than the base, the tokenizer that has all tokens is written. If none has all, it is the
base's, and a note says what that lacks. A token with two ids is refused: rows of unlike tokens would be averaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tangora.checkpoints.tokens import comparable, files_of, tokens_of
from tangora.errors import FusionError
from tangora.storage.checkpoint import Checkpoint

__all__ = ["Vocabulary", "compare", "owners", "resized"]


@dataclass(frozen=True)
class Vocabulary:
    """The result of comparing the tokenizers.

    Attributes:
        tokenizer: the folder to copy the output's tokenizer from.
        ids: per model, the ids of its tokens; empty if they are not needed.
        notes: remarks on the tokenizer for the user.
        files: the files that were read.
    """

    tokenizer: Path
    ids: Sequence[Collection[int]] = ()
    notes: Sequence[str] = ()
    files: Sequence[Path] = field(default_factory=list)


def compare(base: Checkpoint, models: Sequence[Checkpoint], rows: int | None) -> Vocabulary:
    """Compare the models' tokenizers with the base's.

    Args:
        base, models: the checkpoints.
        rows: the number of rows of the output's vocabulary if it is larger than the base's, else None.

    Raises:
        FusionError: a token has two ids; or there are more rows, and a tokenizer is missing or contradicts another one,
            or none has the tokens of all.
        FileError: a tokenizer cannot be read.
    """
    files = {folder: files_of(folder) for folder in (base.folder, *(model.folder for model in models))}
    if rows is None and _alike([paths for paths in files.values() if paths]):
        return Vocabulary(base.folder)
    tables = {folder: _tokens(folder, paths) for folder, paths in files.items() if paths or rows is not None}
    names = {one.folder: one.name for one in (base, *models)}
    read = [path for paths in files.values() for path in paths]
    if rows is None:
        notes = _compared(tables, files, names)
        if base.folder not in tables or not all(comparable(files[base.folder][0], files[f][0]) for f in tables):
            return Vocabulary(base.folder, (), notes, read)
    holder = next((f for f, table in tables.items() if all(t.items() <= table.items() for t in tables.values())), None)
    if rows is None:
        lacking = {token for table in tables.values() for token in table.keys() - tables[base.folder].keys()}
        note = f"the tokenizer is the base's, which lacks tokens of some models: {_some(lacking)}"
        if holder is not None:
            note = f"the tokenizer is {names[holder]}'s, with the added tokens {_some(lacking)}"
        return Vocabulary(holder or base.folder, (), [*notes, note] if lacking else notes, read)
    added = _added(base, {model.folder: tables[model.folder] for model in models}, tables[base.folder])
    if holder is None:
        missing = {folder: added.keys() - table.keys() for folder, table in tables.items() if folder != base.folder}
        least = min(missing, key=lambda folder: len(missing[folder]))
        what = f"no tokenizer has the added tokens of all models; {names[least]}'s lacks {_some(missing[least])}"
        fix = "add them, under their ids, to the tokenizer of one model; it need not have their rows"
        raise FusionError(what, where="fuse.models", fix=fix)
    note = _note(rows, added, names[holder])
    return Vocabulary(holder, [set(tables[m.folder].values()) for m in models], [note], read)


def owners(first: int, lengths: Sequence[int], ids: Sequence[Collection[int]]) -> Iterator[tuple[list[int], int, int]]:
    """Yield the models that a row beyond the base's is the mean of, as runs of rows ``(models, start, stop)``.

    >>> list(owners(4, [4, 7, 6], [{0}, {4, 5}, {4}]))
    [([1, 2], 4, 5), ([1], 5, 7)]
    """

    def models_of(row: int) -> list[int]:
        have = [i for i, length in enumerate(lengths) if row < length]
        return [i for i in have if row in ids[i]] or have

    for models, run in itertools.groupby(range(first, max(lengths)), models_of):
        rows = list(run)
        yield models, rows[0], rows[-1] + 1


def resized(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the configuration with its ``vocab_size``, or that of its text model, set to ``rows``."""
    changed = dict(config)
    if "vocab_size" in changed:
        changed["vocab_size"] = rows
    if isinstance(nested := changed.get("text_config"), Mapping) and "vocab_size" in nested:
        changed["text_config"] = {**nested, "vocab_size": rows}
    return changed


def _tokens(folder: Path, paths: list[Path]) -> dict[str, int]:
    if not paths:
        fix = "put each model's tokenizer.json beside it, or cut the embeddings to one length"
        raise FusionError("embeddings of different lengths, and no tokenizer to compare", where=folder, fix=fix)
    return tokens_of(paths)


def _compared(
    tables: Mapping[Path, Mapping[str, int]], files: Mapping[Path, Sequence[Path]], names: Mapping[Path, str]
) -> list[str]:
    """Compare tokenizers of vocabularies of one length; return notes on what cannot be compared, or has two meanings.

    Raises:
        FusionError: a token has two ids.
    """
    notes: list[str] = []
    for (one, ours), (other, theirs) in itertools.combinations(tables.items(), 2):
        if not comparable(files[one][0], files[other][0]):
            notes.append(
                f"{files[one][0].name} of {names[one]} and {files[other][0].name} of {names[other]} were not compared"
            )
            continue
        if moved := sorted(token for token, index in theirs.items() if ours.get(token, index) != index):
            count = "a token has another id" if len(moved) == 1 else f"{len(moved)} tokens have other ids"
            what = f"{count} in {names[other]} than in {names[one]}, so that rows of unlike tokens would be fused"
            fix = "fuse models of one vocabulary; or give the model the tokenizer that it was trained with"
            raise FusionError(what, got=moved[0], where=other, fix=fix)
        if one == next(iter(names)) and (renamed := _renamed(ours, theirs)):
            shown = [f"{new} instead of {old}" for old, new in renamed[:3]]
            more = f" and {len(renamed) - 3} more" if len(renamed) > 3 else ""
            notes.append(f"{names[other]} has other tokens under ids of the base: {', '.join(shown)}{more}")
    return notes


def _renamed(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return pairs of tokens with one id, if the one tokenizer does not have the other's token."""
    names = {index: token for token, index in ours.items()}
    taken = set(theirs.values())
    gone = {index for token, index in ours.items() if index in taken and token not in theirs}
    kept = {index for token, index in theirs.items() if token in ours}
    return [(names[i], token) for token, i in sorted(theirs.items()) if i in gone - kept]


def _added(base: Checkpoint, tables: Mapping[Path, Mapping[str, int]], ours: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens that the base does not have; raise if their ids contradict each other."""
    added: dict[str, int] = {}
    taken: dict[int, str] = {}
    for folder, theirs in tables.items():
        changed = sorted(token for token, index in ours.items() if theirs.get(token) != index)
        if changed:
            what = f"a model has more rows in its embedding than {base.name}, and another id for one of its tokens"
            raise FusionError(what, got=changed[0], where=folder, fix="fuse models of one vocabulary")
        for token, index in ((t, i) for t, i in theirs.items() if t not in ours):
            if added.setdefault(token, index) != index:
                what = f"models added one token under different ids: {added[token]} and {index}"
                raise FusionError(what, got=token, where=folder, fix="give the token one id")
            if taken.setdefault(index, token) != token:
                what = f"models added different tokens under the id {index}: {taken[index]} and {token}"
                fix = "give one of them an unused id, in its model's tokenizer and embedding"
                raise FusionError(what, where=folder, fix=fix)
    return added


def _note(rows: int, added: Mapping[str, int], holder: str) -> str:
    note = f"the vocabulary has {rows} rows; those beyond the base's are means of the models that have them"
    return f"{note}; the tokenizer is {holder}'s, with the added tokens {_some(added)}" if added else note


def _some(tokens: Collection[str]) -> str:
    shown = sorted(tokens)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _alike(files: Sequence[Sequence[Path]]) -> bool:
    return all(len(f) == len(files[0]) and all(map(_equal, f, files[0])) for f in files[1:])


def _equal(one: Path, other: Path) -> bool:
    return one.name == other.name and one.read_bytes() == other.read_bytes()
