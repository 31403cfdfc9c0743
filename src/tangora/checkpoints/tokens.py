"""Read token -> id from the files of a tokenizer, without a library that would run its code.

The first of these that a folder contains counts: ``tokenizer.json``; ``vocab.json``, ``vocab.txt`` or a SentencePiece
model, each with ``added_tokens.json``; ``tekken.json``. Ids in a SentencePiece model and in ``tekken.json`` are
positions, from which some tokenizers compute others: they are comparable with files of the same name only.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tangora.errors import FileError
from tangora.support.files import inside, read_json

__all__ = ["comparable", "files_of", "tokens_of"]

_ADDED = "added_tokens.json"
_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm")
_FIX = "save the tokenizer again"


def files_of(folder: Path) -> list[Path]:
    """Return the files that a folder's tokens and ids are read from."""
    for name in ("tokenizer.json", "vocab.json", "vocab.txt", *_PIECES, "tekken.json"):
        if (folder / name).is_file():
            beside = [] if name in ("tokenizer.json", "tekken.json") or not (folder / _ADDED).is_file() else [_ADDED]
            return [inside(folder, each) for each in (name, *beside)]
    return []


def comparable(one: Path, other: Path) -> bool:
    """Return whether ids that were read from these files mean the same."""
    by_position = (*_PIECES, "tekken.json")
    return one.name == other.name or (one.name not in by_position and other.name not in by_position)


def tokens_of(paths: list[Path]) -> dict[str, int]:
    """Read token -> id from the result of `files_of`.

    Raises:
        FileError: a file is not the vocabulary of a tokenizer.
    """
    path, *added = paths
    if path.name == "tokenizer.json":
        return _numbers(_fast(path), path)
    if path.name == "vocab.txt":
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        table: dict[str, Any] = {line: index for index, line in enumerate(lines)}
    elif path.name == "tekken.json":
        table = _tekken(path)
    elif path.name in _PIECES:
        table = {piece: index for index, piece in enumerate(_pieces(path))}
    else:
        table = dict(read_json(path))
    for extra in added:
        table |= read_json(extra)
    return _numbers(table, path)


def _fast(path: Path) -> dict[str, Any]:
    tokenizer = read_json(path)
    model, listed = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    vocabulary: Any = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        vocabulary = {str(pair[0]): i for i, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    if not isinstance(vocabulary, dict) or not isinstance(listed, list) or not all(isinstance(t, dict) for t in listed):
        raise FileError("the tokenizer has no vocabulary", where=path, fix=_FIX)
    return {**vocabulary, **{str(t.get("content")): t.get("id") for t in listed}}


def _tekken(path: Path) -> dict[str, Any]:
    file = read_json(path)
    config, listed, special = (file.get(key) or kind() for key, kind in _TEKKEN.items())
    if not isinstance(config, dict) or not all(isinstance(x, list) for x in (listed, special)):
        raise FileError("the tokenizer has no vocabulary", where=path, fix=_FIX)
    if not all(isinstance(entry, dict) for entry in (*listed, *special)):
        raise FileError("the tokenizer has no vocabulary", where=path, fix=_FIX)
    first, size = config.get("default_num_special_tokens", 0), config.get("default_vocab_size")
    if not isinstance(first, int) or not isinstance(size, (int, type(None))):
        raise FileError("the size of the vocabulary is not a number", where=path, fix=_FIX)
    held = listed if size is None else listed[: max(0, size - first)]
    try:
        table = {base64.b64decode(entry["token_bytes"]).decode("latin-1"): entry["rank"] + first for entry in held}
    except (KeyError, TypeError, ValueError, binascii.Error) as cause:
        raise FileError("a token without bytes or rank", where=path, fix=_FIX) from cause
    return table | {str(entry.get("token_str")): entry.get("rank") for entry in special}


_TEKKEN = {"config": dict, "vocab": list, "special_tokens": list}


def _pieces(path: Path) -> Iterator[str]:
    """Yield the pieces of a SentencePiece model: field 1 of the message, and field 1 of each of these."""
    for number, value in _fields(path.read_bytes(), path):
        if number == 1:
            text = next((inner for field, inner in _fields(value, path) if field == 1), b"")
            yield text.decode("utf-8", errors="surrogateescape")


def _fields(message: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of the fields of a protobuf message that have a length, and skip the others."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at, path)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(message, at, path)
        elif kind == 0:
            _, at = _varint(message, at, path)
            continue
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise FileError("no SentencePiece model", where=path, fix=_FIX)
        if at + size > len(message):
            raise FileError("the SentencePiece model is truncated", where=path, fix=_FIX)
        if kind == 2:
            yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int, path: Path) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
    raise FileError("the SentencePiece model is truncated", where=path, fix=_FIX)


def _numbers(vocabulary: Mapping[str, Any], path: Path) -> dict[str, int]:
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in vocabulary.values()):
        raise FileError("an id that is not a number", where=path, fix=_FIX)
    return dict(vocabulary)
