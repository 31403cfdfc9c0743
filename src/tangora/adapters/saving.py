"""Write an adapter's folder completely or not at all: weights in a format, provenance, card and heads."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tangora.adapters import card
from tangora.adapters.contract import FileFormat
from tangora.adapters.heads import write_heads, write_records
from tangora.adapters.metadata import ABOUT, FILE
from tangora.errors import ArgumentError, FileError, OutputError
from tangora.storage.header import read_file_metadata, read_header
from tangora.storage.tensors import finite
from tangora.support.files import atomic_dir, atomic_file, write_json, write_text
from tangora.support.seams import FORMATS

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.contract import Format

__all__ = ["is_file_name", "refuse_file_name", "refuse_foreign_file", "save", "target_format", "write_weights"]

Check = Callable[["Adapter", Path], Mapping[str, Any]]


def save(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    check: Check | None = None,
    format_name: str | None = None,
    beside: Mapping[str, Path] | None = None,
) -> None:
    """Write an adapter; see `Adapter.save`."""
    chosen = target_format(adapter, Path(path), format_name)
    _refuse_infinity(adapter, Path(path))
    if is_file_name(path):
        _save_file(adapter, Path(path), cast("FileFormat", chosen), overwrite, check)
        return
    with atomic_dir(path, overwrite=overwrite, record=FILE) as folder:
        chosen.write(adapter, folder)
        write_heads(folder, adapter.heads)
        write_records(folder, adapter.records)
        for name, source in (beside or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
        verified = check(adapter, folder) if check is not None else None
        written = replace(adapter, metadata=adapter.metadata.model_copy(update={"verified": verified}))
        write_json(folder / FILE, written.metadata.model_dump(mode="json"))
        write_text(folder / "README.md", card.render(written))


def is_file_name(path: str | os.PathLike[str]) -> bool:
    """Return whether an output is one file of an adapter, and not a folder."""
    return Path(path).suffix == ".safetensors"


def refuse_file_name(path: str | os.PathLike[str]) -> None:
    """Refuse the name of a file for what is written as a folder, before anything is computed.

    Raises:
        ArgumentError: it names a file of an adapter.
    """
    if is_file_name(path):
        fix = "leave .safetensors out; tangora export writes single files of an adapter"
        raise ArgumentError("what is trained is written as a folder", got=Path(path).name, where="--out", fix=fix)


def target_format(adapter: Adapter, path: Path, format_name: str | None = None) -> Format:
    """Return the format in which an adapter is written to a path: the named one, its file's, or that of its kind.

    Raises:
        PluginError: there is no such format.
        ArgumentError: the format is for another kind, or writes a folder where a file is named, or a file where a
            folder is.
    """
    file = adapter.details.file
    to_file = is_file_name(path)
    # Sites of an unknown model with peft's names are those of any network, for which peft's folder is the usual form.
    own = file.format if file is not None and (to_file or file.models or file.format != "peft") else None
    kind = adapter.metadata.of_kind
    chosen = cast("Format", FORMATS.get(format_name or own or kind.format))
    if chosen.kind != kind.name:
        fix = f"leave the format out: {kind.format} is written"
        raise ArgumentError(f"this adapter is of kind {kind.name}", got=chosen.name, where="save.format", fix=fix)
    one_file = isinstance(chosen, FileFormat)
    if to_file and not one_file:
        fix = "give a folder without .safetensors, or a format of one file, such as kohya or diffusers, by --format"
        raise ArgumentError(f"the format {chosen.name} is a folder", got=path.name, where="out", fix=fix)
    if one_file and not to_file:
        fix = f"name a file: {path.name}.safetensors"
        raise ArgumentError(f"the format {chosen.name} is one file", got=path.name, where="out", fix=fix)
    return chosen


def _save_file(adapter: Adapter, path: Path, format_: FileFormat, overwrite: bool, check: Check | None) -> None:
    refuse_foreign_file(path)
    ready = format_.prepare(adapter)
    with atomic_file(path, overwrite=overwrite) as scratch:
        format_.write_file(ready, scratch)
        if check is not None:
            verified = dict(check(ready, scratch))
            metadata = ready.metadata.model_copy(update={"verified": verified})
            format_.write_file(replace(ready, metadata=metadata), scratch)


def refuse_foreign_file(path: Path) -> None:
    """Refuse to replace a file that Tangora has not written, or a folder.

    Raises:
        OutputError: names it.
    """
    if not path.exists():
        return
    if path.is_dir():
        raise OutputError("a folder is where the file would be", where=path, fix="choose another --out")
    with contextlib.suppress(FileError):
        read_header(path)
        if ABOUT in read_file_metadata(path):
            return
    fix = "choose another --out, or remove it yourself"
    raise OutputError("--overwrite would replace a file that Tangora did not write", where=path, fix=fix)


def write_weights(adapter: Adapter, folder: Path, format_name: str | None = None) -> None:
    """Write only the weights into a folder, in the named format or that of the adapter's kind.

    Raises:
        PluginError: there is no such format.
        ArgumentError: the format is for another kind.
        AdapterError: the format cannot represent the adapter.
    """
    kind = adapter.metadata.of_kind
    chosen = cast("Format", FORMATS.get(format_name or kind.format))
    if chosen.kind != kind.name:
        fix = f"leave the format out: {kind.format} is written"
        raise ArgumentError(f"this adapter is of kind {kind.name}", got=chosen.name, where="save.format", fix=fix)
    chosen.write(adapter, folder)


def _refuse_infinity(adapter: Adapter, path: Path) -> None:
    for name, tensor in itertools.chain(adapter.whole.items(), *(named.items() for named in adapter.heads.values())):
        finite(name, tensor, path)
    for site, update in adapter.updates.items():
        factors = update.factors()
        for tensor in (update.dense(),) if factors is None else (factors.b, factors.a):
            finite(site, tensor, path)
