"""Add the rows of new tokens to a base: adapters of a resized vocabulary saved its embeddings whole.

Rows that the base has are weighted as changes of it, as any parameter that is saved whole. A row beyond these has
nothing to differ from: it is written as the adapters saved it, and they must agree on it. The tokenizer is that of an
adapter's folder, if it has one with all of the base's tokens and ids; else a note says that the base's lacks tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.adapters.formats.lora.names import sort_tensors
from tangora.adapters.formats.lora.reading import CONFIG, WEIGHTS
from tangora.checkpoints.align import Target
from tangora.checkpoints.tokens import files_of, tokens_of
from tangora.errors import FileError, FusionError
from tangora.fusion.saved import name_in
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import ITEMSIZE, Stored, read_header
from tangora.storage.tensors import read_rows
from tangora.storage.vocabulary import is_vocabulary
from tangora.support.files import inside, read_json

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["check_added_rows", "refuse_adapted_rows", "saved_in", "split_rows", "tokenizer_of", "with_added_rows"]

_FIX = "report it, with the adapters' configurations; --no-verify writes it all the same"


def saved_in(folder: Path) -> dict[str, Stored]:
    """Return the parameters that the adapter in a folder saved whole; none if it is not one of peft's."""
    if not (folder / CONFIG).is_file():
        return {}
    path = inside(folder, WEIGHTS)
    return sort_tensors(read_header(path), read_json(inside(folder, CONFIG)), path).whole


def refuse_adapted_rows(adapters: Sequence[Adapter], base: Checkpoint) -> None:
    """Refuse factors for rows of tokens that the base does not have.

    Raises:
        FusionError: the update of an embedding, or of an output head, has another number of rows than the base.
    """
    for adapter in adapters:
        for site, update in adapter.updates.items():
            if not is_vocabulary(f"{site}.weight") or len(update.shape) != 2:
                continue
            stored = base.find(name_in(base, f"{site}.weight", [adapter]))
            rows = update.shape[1 if site in adapter.embeddings else 0]
            if stored is not None and len(stored.shape) == 2 and stored.shape[0] != rows:
                what = f"the adapter changes {rows} rows of tokens, the base has {stored.shape[0]}"
                fix = "resize the vocabulary of the base as in training, save it with its tokenizer, and give that"
                raise FusionError(what, where=site, fix=fix)


def split_rows(
    whole: Mapping[str, Tensor], base: Checkpoint, adapters: Sequence[Adapter]
) -> tuple[dict[str, tuple[str, Tensor]], dict[str, Tensor]]:
    """Return what has more rows of tokens than the base, for `with_added_rows`; and all values with the base's rows."""
    grown: dict[str, tuple[str, Tensor]] = {}
    cut = dict(whole)
    for site, value in whole.items():
        stored = base.find(name_in(base, site, adapters))
        if stored is None or not is_vocabulary(site) or tuple(value.shape[1:]) != stored.shape[1:]:
            continue
        if len(value) > stored.shape[0]:
            grown[stored.name], cut[site] = (site, value), value[: stored.shape[0]]
    return grown, cut


def with_added_rows(
    targets: Sequence[Target], grown: Mapping[str, tuple[str, Tensor]], folders: Sequence[Path]
) -> tuple[list[Target], int | None]:
    """Return the targets with the rows that the base does not have, and the number of all rows; None if there are none.

    Args:
        targets: the tensors of the output.
        grown: the base's name -> the adapters' name and the value, of parameters with more rows than the base's.
        folders: of the adapters.

    Raises:
        FusionError: embedding and output head would have different numbers of rows, or no file has the rows.
    """
    if not grown:
        return list(targets), None
    files = [saved_in(folder) for folder in folders]
    added: dict[str, Target] = {}
    by_name = {target.name: target for target in targets}
    for name, (site, value) in grown.items():
        target, rows = by_name[name], len(value)
        first = next((file[site] for file in files if site in file and file[site].shape == tuple(value.shape)), None)
        if first is None or not torch.equal(_tail(first, target.base.shape[0]), value[target.base.shape[0] :].float()):
            fix = "save the adapter again with peft, without embeddings that were changed since"
            raise FusionError("no adapter's file has the rows of the new tokens", where=site, fix=fix)
        tail = Target(name, _cut(first, target.base.shape[0], rows), (), mean=True)
        added[name] = replace(target, tails=(tail,))
    length = next(len(value) for _, value in grown.values())
    short = [t.name for t in by_name.values() if t.name not in added and _has_tokens(t, next(iter(added.values())))]
    if short or len({len(value) for _, value in grown.values()}) > 1:
        fix = "save embedding and output head of one length, both of them, in the adapter"
        where = ", ".join([*added, *short])
        raise FusionError(
            "the adapters have more rows of tokens than the base in only some tensors", where=where, fix=fix
        )
    return [added.get(target.name, target) for target in targets], length


def _has_tokens(target: Target, grown: Target) -> bool:
    return is_vocabulary(target.name) and target.base.shape[:1] == grown.base.shape[:1]


def _tail(stored: Stored, start: int) -> Tensor:
    return read_rows(stored, start, stored.shape[0]).reshape(-1, *stored.shape[1:]).float()


def _cut(stored: Stored, start: int, stop: int) -> Stored:
    row = stored.entries // stored.shape[0] * ITEMSIZE[stored.dtype]
    shape = (stop - start, *stored.shape[1:])
    return replace(stored, shape=shape, start=stored.start + start * row, size=(stop - start) * row)


def tokenizer_of(base: Checkpoint, folders: Sequence[Path], rows: int) -> tuple[Path, str]:
    """Return the folder whose tokenizer the output gets, and a note.

    Raises:
        FusionError: two adapters' tokenizers give one id to different tokens.
    """
    note = f"the vocabulary has {rows} rows; those beyond the base's are as the adapters saved them"
    tables = {folder: table for folder in folders if (table := _table(folder)) is not None}
    ours = _table(base.folder)
    for folder, table in tables.items():
        if changed := sorted(token for token, index in (ours or {}).items() if table.get(token) != index):
            what = "an adapter's tokenizer gives another id to a token of the base"
            raise FusionError(what, got=changed[0], where=folder, fix="fuse adapters of the base's vocabulary")
    if len({frozenset(table.items()) for table in tables.values()}) > 1:
        what = "the adapters' tokenizers differ, so one row may stand for different tokens"
        raise FusionError(what, got=[folder.name for folder in tables], fix="fuse adapters of one vocabulary")
    if not tables:
        return base.folder, f"{note}; the tokenizer is the base's, which lacks their tokens: add the adapters' own"
    return next(iter(tables)), f"{note}; the tokenizer is {next(iter(tables)).resolve().name}'s"


def _table(folder: Path) -> Mapping[str, int] | None:
    paths = files_of(folder)
    return tokens_of(paths) if paths else None


def check_added_rows(target: Target, written: Tensor) -> None:
    """Compare the rows of a written tensor that the base does not have with the adapters'.

    Args:
        target: the tensor.
        written: those rows.

    Raises:
        FileError: they differ.
    """
    expected = torch.cat([read_rows(t.base, 0, t.base.shape[0]).reshape(t.base.shape) for t in target.tails])
    if not torch.equal(expected.to(written.dtype), written):
        raise FileError("the rows of new tokens are not the adapters'", where=target.name, fix=_FIX)
