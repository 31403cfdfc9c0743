"""What of a folder may be published on the Hub: an adapter or a checkpoint, whole, with a card and without local paths.

The files are read as they are; what is uploaded in their place differs in two things only: the base's name, if another
is given, and the placeholder of the folder in the card's code.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tangora.adapters.contract import format_of, holds_adapter
from tangora.adapters.metadata import read_metadata
from tangora.adapters.usage import FOLDER
from tangora.errors import FileError
from tangora.storage.checkpoint import open_checkpoint
from tangora.storage.hub_files import small_files_of, weights_among
from tangora.storage.recognition import CONFIG, Contents
from tangora.support.files import inside, reachable, read_json
from tangora.support.hub import HubReference
from tangora.support.json_text import parse_json
from tangora.support.publishing import is_scratch
from tangora.support.records import RECORDS, files_in

__all__ = ["CARD", "Publishable", "publishable"]

CARD = "README.md"
_ADAPTER_CONFIG = "adapter_config.json"
_PICKLE = re.compile(r"[^/]*\.(bin|pt|pth|ckpt|pkl|pickle|joblib)", re.IGNORECASE)
_TOKENS = re.compile(r"tokenizer\.json|vocab.*|.*_vocab\.json|(added_tokens|special_tokens_map)\.json|.*\.index\.json")
_PATH = r"(?:/[\w.@+ -]+){2,}|~/[\w./@+-]+|[A-Za-z]:[\\/][\w.\\/@+ -]+"
_IN_TEXT = re.compile(rf"(?<![\w:/.<~)\]}}-])(?:{_PATH.replace(' ', '')})")
_WHOLE = re.compile(rf"(?:{_PATH})/?")


@dataclass(frozen=True)
class Publishable:
    """A folder that may be published.

    Attributes:
        folder: where it is.
        files: path in the repository -> the file, or the bytes that are uploaded in its place.
        left_out: files of the folder that are not part of it.
    """

    folder: Path
    files: Mapping[str, Path | bytes]
    left_out: list[str]


def publishable(folder: str | os.PathLike[str], repository: str, base: str | None = None) -> Publishable:
    """Check a folder, and return what is uploaded.

    Args:
        folder: of an adapter or a checkpoint.
        repository: ``org/name``, which the card's code will name.
        base: the base's name on the Hub, in place of the one in the files.

    Raises:
        FileError, AdapterError: the folder is not a whole adapter or checkpoint; has a pickle, a link that leads out,
            or no card; or a local path stands in its card or its records.
    """
    path = reachable(folder)
    if not path.is_dir():
        raise FileError("no such folder", where=path, fix="give the folder of an adapter or of a checkpoint")
    names = files_in(path)
    _refuse_unfinished(path, names)
    if pickles := [name for name in names if _PICKLE.fullmatch(name)]:
        fix = "save weights as safetensors, and move the file out of the folder"
        raise FileError("a pickle, which can run code, is not published", got=pickles[0], where=path, fix=fix)
    chosen = _chosen(path, names)
    if CARD not in chosen:
        fix = "write it: what the model is, of which base, made how; Tangora and peft write one when they save"
        raise FileError("no model card in the folder", got=CARD, where=path, fix=fix)
    files: dict[str, Path | bytes] = {name: inside((path / name).parent, Path(name).name) for name in chosen}
    if base is not None:
        files |= _with_base(path, files, base)
    _refuse_local(path, files)
    card = _text(files[CARD])
    files[CARD] = card.replace(f'"{FOLDER}"', f'"{repository}"').replace(f" {FOLDER} ", f" {repository} ").encode()
    return Publishable(path, files, [name for name in names if name not in chosen])


def _refuse_unfinished(path: Path, names: list[str]) -> None:
    """Refuse a folder that is being written, or lacks files that its own record lists."""
    parts = {part for name in names for part in name.split("/")} | {path.resolve().name}
    if scratch := sorted(part for part in parts if is_scratch(part) or part.endswith((".fusing", ".training"))):
        fix = "wait for the command that writes it, or give it again: it goes on where it stopped"
        raise FileError("the folder is not finished", got=scratch[0], where=path, fix=fix)
    for record in RECORDS:
        if (path / record).is_file():
            listed = read_json(inside(path, record)).get("files")
            lost = sorted({str(name) for name in listed} - set(names)) if isinstance(listed, list) else []
            if lost:
                fix = "copy the folder again, all of its files"
                raise FileError("a file that the folder's record lists is missing", got=lost[0], where=path, fix=fix)


def _chosen(path: Path, names: list[str]) -> list[str]:
    """Open what the folder holds, and return the names of its files."""
    content: Contents = "checkpoint"
    if holds_adapter(path):
        format_of(path).survey(path, read_metadata(path))  # headers and settings are read, and refused if damaged
        content = "adapter"
    else:
        open_checkpoint(path)
    weights = weights_among(path, names, content, HubReference(str(path)))
    return sorted({*small_files_of(names, content), *weights})


def _with_base(path: Path, files: Mapping[str, Path | bytes], base: str) -> dict[str, bytes]:
    """Return the files that name the base, with another name in place of it."""
    old = _named_base(path)
    changed: dict[str, bytes] = {}
    if old is not None and old != base:
        for name in _records(files):
            content = parse_json(_text(files[name]))
            if (renamed := _renamed(content, old, base)) != content:
                changed[name] = (json.dumps(renamed, indent=2, ensure_ascii=False) + "\n").encode()
    card = _text(files[CARD])
    if old is not None:
        card = re.sub(rf"(?<![\w/.-]){re.escape(old)}(?![\w/-])", lambda _: base, card)
    if not re.search(r"^base_model:", card, re.MULTILINE):
        front = f"---\nbase_model: {base}\n"
        card = card.replace("---\n", front, 1) if card.startswith("---\n") else f"{front}---\n\n{card}"
    return {**changed, CARD: card.encode()}


def _named_base(path: Path) -> str | None:
    """Return the name of the base in a folder's records."""
    metadata = read_metadata(path)
    if metadata is not None and metadata.base.model is not None:
        return metadata.base.model
    for file, key in ((_ADAPTER_CONFIG, "base_model_name_or_path"), (CONFIG, "_name_or_path")):
        if (path / file).is_file():
            named = read_json(inside(path, file)).get(key)
            if isinstance(named, str) and named:
                return named
    return None


def _renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(one, old, new) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, old, new) for one in value]
    return new if value == old else value


def _records(files: Mapping[str, Path | bytes]) -> list[str]:
    """Return the names of JSON files that describe: not those of tokens, nor an index."""
    return [name for name in files if name.endswith(".json") and not _TOKENS.fullmatch(Path(name).name)]


def _refuse_local(path: Path, files: Mapping[str, Path | bytes]) -> None:
    """Refuse paths of this machine in the card and in the records, and a base that is a folder here."""
    fix = "name the base as it is called on the Hub: --base org/name, base=; or correct the file"
    base = _named_base(path) if _ADAPTER_CONFIG in files or "tangora.json" in files else None
    for name in _records(files):
        try:
            content = parse_json(_text(files[name]))
        except ValueError as cause:
            raise FileError("not readable as JSON", where=path / name, fix="write the file again") from cause
        for text in _strings(content):
            if _WHOLE.fullmatch(text) or (text == base and _is_folder(text)):
                raise FileError("a path of this machine would be published", got=text, where=path / name, fix=fix)
    card = _text(files[CARD])
    if found := _IN_TEXT.search(card):
        where = path / CARD
        raise FileError("a path of this machine would be published", got=found[0], where=where, fix=fix)


def _is_folder(name: str) -> bool:
    return name.startswith((".", "~")) or Path(name).is_dir()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _text(content: Path | bytes) -> str:
    data = content.read_bytes() if isinstance(content, Path) else content
    return data.decode("utf-8", errors="replace")
