"""Vocabularies that grew: find the models that have a token, by the ids of their tokenizers, and choose a tokenizer.

A row that the base has is fused like any other. A row beyond the base's has nothing to differ from: for every method
and all weights it is the mean of the models with a token of that id in their tokenizer. If there is none, the row is
padding, and the mean of the models that have it. No token is lost: the output's tokenizer is the first that has all.

If no model has more rows than the base, tokenizers are only compared to write the one that has all tokens. If none has
all, the base's is written, and a note says what it lacks.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tangora.errors import FileError, FusionError
from tangora.storage.checkpoint import Checkpoint
from tangora.support.files import inside, read_json

__all__ = ["Vocabulary", "compare", "owners", "resized"]

_NAMES = ("tokenizer.json", "vocab.json", "added_tokens.json")


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
        FusionError: there are more rows, and a tokenizer is missing, gives a token of the base another id, or
            contradicts another tokenizer, or none has the tokens of all.
        FileError: a tokenizer cannot be read.
    """
    files = {folder: _files(folder) for folder in (base.folder, *(model.folder for model in models))}
    if rows is None and (not files[base.folder] or _alike([paths for paths in files.values() if paths])):
        return Vocabulary(base.folder)
    tables = {folder: _tokens(folder) for folder, paths in files.items() if paths or rows is not None}
    read = [path for paths in files.values() for path in paths]
    holder = next((f for f, table in tables.items() if all(t.items() <= table.items() for t in tables.values())), None)
    if rows is None:
        lacking = {token for table in tables.values() for token in table.keys() - tables[base.folder].keys()}
        note = f"the tokenizer is the base's, which lacks tokens of some models: {_some(lacking)}"
        if holder is not None:
            note = f"the tokenizer is {_name(holder)}'s, with the added tokens {_some(lacking)}"
        return Vocabulary(holder or base.folder, (), [note] if lacking else [], read)
    added = _added(base, {model.folder: tables[model.folder] for model in models}, tables[base.folder])
    if holder is None:
        missing = {_name(f): added.keys() - table.keys() for f, table in tables.items() if f != base.folder}
        least = min(missing, key=lambda name: len(missing[name]))
        what = f"no tokenizer has the added tokens of all models; {least}'s lacks {_some(missing[least])}"
        fix = "add them, under their ids, to the tokenizer of one model; it need not have their rows"
        raise FusionError(what, where="fuse.models", fix=fix)
    return Vocabulary(holder, [set(tables[m.folder].values()) for m in models], [_note(rows, added, holder)], read)


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


def _note(rows: int, added: Mapping[str, int], holder: Path) -> str:
    note = f"the vocabulary has {rows} rows; those beyond the base's are means of the models that have them"
    return f"{note}; the tokenizer is {_name(holder)}'s, with the added tokens {_some(added)}" if added else note


def _some(tokens: Collection[str]) -> str:
    shown = sorted(tokens)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _name(folder: Path) -> str:
    return folder.resolve().name


def _files(folder: Path) -> list[Path]:
    """Return the files that a folder's tokens and ids are read from."""
    names = [name for name in _NAMES if (folder / name).is_file()]
    if "tokenizer.json" in names:
        names = names[:1]
    return [inside(folder, name) for name in names if names != ["added_tokens.json"]]


def _alike(files: Sequence[Sequence[Path]]) -> bool:
    return all(len(f) == len(files[0]) and all(map(_equal, f, files[0])) for f in files[1:])


def _equal(one: Path, other: Path) -> bool:
    return one.name == other.name and one.read_bytes() == other.read_bytes()


def _tokens(folder: Path) -> dict[str, int]:
    """Read token -> id from the files of a tokenizer."""
    paths = _files(folder)
    if not paths:
        fix = "put each model's tokenizer.json beside it, or cut the embeddings to one length"
        raise FusionError("embeddings of different lengths, and no tokenizer to compare", where=folder, fix=fix)
    if paths[0].name != "tokenizer.json":
        return _numbers({token: index for path in paths for token, index in read_json(path).items()}, paths[0])
    tokenizer = read_json(paths[0])
    model, listed = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    vocabulary: Any = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        vocabulary = {pair[0]: i for i, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    if not isinstance(vocabulary, dict) or not all(isinstance(t, dict) for t in listed):
        raise FileError("the tokenizer has no vocabulary", where=paths[0], fix="save the tokenizer again")
    return _numbers({**vocabulary, **{str(t.get("content")): t.get("id") for t in listed}}, paths[0])


def _numbers(vocabulary: Mapping[str, Any], path: Path) -> dict[str, int]:
    if not all(isinstance(index, int) for index in vocabulary.values()):
        raise FileError("an id that is not a number", where=path, fix="save the tokenizer again")
    return dict(vocabulary)
