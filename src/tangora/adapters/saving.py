"""Write an adapter's folder completely or not at all: weights in a format, provenance, card and heads."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tangora.adapters import card
from tangora.adapters.heads import write_heads, write_records
from tangora.adapters.metadata import FILE
from tangora.errors import ArgumentError
from tangora.storage.tensors import finite
from tangora.support.files import atomic_dir, write_json, write_text
from tangora.support.seams import FORMATS

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.contract import Format

__all__ = ["save", "write_weights"]

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
    _refuse_infinity(adapter, Path(path))
    with atomic_dir(path, overwrite=overwrite, record=FILE) as folder:
        write_weights(adapter, folder, format_name)
        write_heads(folder, adapter.heads)
        write_records(folder, adapter.records)
        for name, source in (beside or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
        verified = check(adapter, folder) if check is not None else None
        written = replace(adapter, metadata=adapter.metadata.model_copy(update={"verified": verified}))
        write_json(folder / FILE, written.metadata.model_dump(mode="json"))
        write_text(folder / "README.md", card.render(written))


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
