"""The base model of an adapter as a server has it: its configuration, its class, and the names of its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.errors import AdapterError, ArgumentError, FileError
from tangora.storage.architecture import Architecture, own_architectures, stored_folder
from tangora.storage.checkpoint import open_checkpoint
from tangora.storage.tensors import read_rows
from tangora.support.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.adapters.adapter import Adapter
    from tangora.storage.header import Stored

__all__ = ["ServedBase", "served_base", "with_names_of", "without_unchanged"]

_FIX = "give the base model that the adapter was made for, with --base or base="


@dataclass(frozen=True)
class ServedBase:
    """A base model.

    Attributes:
        name: the folder, or the name on the Hub, as it was given.
        folder: where its configuration is.
        config: ``config.json``.
        architecture: the class that the configuration names; None if transformers does not have it.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    architecture: Architecture | None

    @property
    def class_name(self) -> str:
        """The name of the class that a server loads: the first that the configuration lists."""
        listed = self.config.get("architectures")
        return str(listed[0]) if isinstance(listed, list) and listed else ""

    @property
    def place(self) -> str:
        """What a command names it by: an absolute path, or its name on the Hub."""
        folder = Path(self.name)
        return str(folder.absolute()) if folder.is_dir() else self.name

    @property
    def ties(self) -> bool:
        """Whether the output layer is the input embedding, by the configuration or by the default of its kind."""
        stated = self.config.get("tie_word_embeddings")
        if isinstance(stated, bool):
            return stated
        from transformers import AutoConfig  # deferred: transformers takes seconds to import

        try:
            return bool(AutoConfig.for_model(str(self.config.get("model_type"))).tie_word_embeddings)
        except (AttributeError, ValueError, KeyError):  # a kind that transformers does not have
            return True


def served_base(name: str | None, recorded: str | None, revision: str | None = None) -> ServedBase:
    """Return the base model; no weight is read.

    Args:
        name: a folder, or a name on the Hub whose files are in the cache. None for the recorded one.
        recorded: the base's name in the adapter's files.
        revision: of the recorded base.

    Raises:
        ArgumentError: neither is known.
        FileError: there is no ``config.json``.
    """
    chosen = name or recorded
    if not chosen:
        what = "the adapter does not name its base, whose configuration a server's rules depend on"
        raise ArgumentError(what, where="export", fix="give the base's folder, with --base or base=")
    folder = stored_folder(chosen, revision if name is None else None)
    if folder is None:
        what = "no config.json of the base in this folder or in the Hub's cache"
        fix = "give the base's folder with --base or base=, or download it first: hf download NAME"
        raise FileError(what, got=chosen, where="export", fix=fix)
    config = read_json(folder / "config.json")
    return ServedBase(chosen, folder, config, next(iter(own_architectures(config)), None))


def with_names_of(base: ServedBase, adapter: Adapter) -> Adapter:
    """Return the adapter with the names that its layers have in the class that a server loads.

    An adapter that was trained on the bare model lacks the prefix of that class. A server that looks layers up by name
    would pass over all of them without a word.

    Raises:
        AdapterError: the class has no such layer, or one of another shape.
    """
    architecture = base.architecture
    if architecture is None:
        return adapter
    table = {site: architecture.module(site) for site in adapter.updates}
    for site, name in table.items():
        shape = None if name is None else _shape(architecture, name, site in adapter.embeddings)
        if name is None or shape is None:
            raise AdapterError(f"{architecture.name} has no such layer", where=site, fix=_FIX)
        flat = (shape[0], math.prod(shape[1:]))
        if flat != tuple(adapter.updates[site].shape):
            what = f"the weight in {architecture.name} is {flat}, the update {tuple(adapter.updates[site].shape)}"
            raise AdapterError(what, where=site, fix=_FIX)
    names = {site: name for site, name in table.items() if name is not None}
    if len(set(names.values())) < len(names):
        raise AdapterError(f"two sites are one layer of {architecture.name}", where=base.name, fix=_FIX)
    if all(site == name for site, name in names.items()):
        return adapter
    updates = {names[site]: update for site, update in adapter.updates.items()}
    whole = {architecture.in_memory(name) or name: value for name, value in adapter.whole.items()}
    details = replace(
        adapter.details,
        initial=None,
        embeddings=frozenset(names[site] for site in adapter.embeddings),
        kernels={names[site]: kernel for site, kernel in adapter.kernels.items()},
    )
    return replace(adapter, updates=updates, details=details, whole=whole)


def _shape(architecture: Architecture, site: str, is_embedding: bool) -> tuple[int, ...] | None:
    """Return the shape of a layer's weight in the update's orientation; None if it has none."""
    shape = architecture.parameters.get(f"{site}.weight")
    turned = is_embedding or architecture.modules.get(site) == "Conv1D"
    return shape if shape is None or not turned else shape[::-1]


def without_unchanged(base: ServedBase, adapter: Adapter) -> tuple[Adapter, list[str]]:
    """Return the adapter without parameters that are saved whole but are the base's own, and notes.

    peft saves the embeddings below their factors, too, and the output layer with them. A server has them already.

    Raises:
        FileError: the base's weights are damaged.
    """
    if not adapter.whole:
        return adapter, []
    try:
        weights = open_checkpoint(base.folder)
    except FileError:  # its configuration alone is there: nothing can be compared, and the parameters are kept
        return adapter, []
    kept = {name: value for name, value in adapter.whole.items() if not _is_bases(weights.find(name), value)}
    if not (dropped := sorted(adapter.whole.keys() - kept.keys())):
        return adapter, []
    return replace(adapter, whole=kept), [f"left out, since they are the base's own: {', '.join(dropped)}"]


def _is_bases(stored: Stored | None, value: Tensor) -> bool:
    if stored is None or stored.shape != tuple(value.shape):
        return False
    own = read_rows(stored, 0, stored.shape[0]) if stored.shape else None
    return own is not None and bool((own.reshape(value.shape).to(value.dtype) == value).all())
