"""Bring adapters of several layouts to sites of one naming, or refuse them with both names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from tangora.adapters.adapter import Adapter
from tangora.adapters.layouts.details import SingleFile
from tangora.adapters.layouts.lookup import models_of, place_of
from tangora.adapters.layouts.pieces import has_fused, has_pieces, split_fused
from tangora.errors import FusionError
from tangora.updates.task_vector import Update

__all__ = ["adopted", "in_one_layout"]

_WHERE = "fuse.adapters"


def adopted(adapter: Adapter, *, values: bool = True) -> Adapter:
    """Return an adapter with the sites of its model if it has the module names of a known one, such as peft's folders.

    An adapter of a single file, and any other, is returned as it is.
    """
    if adapter.details.file is not None or adapter.metadata.kind != "lora" or adapter.whole:
        return adapter
    for format_name in ("diffusers", "comfy"):
        if models := models_of(adapter.updates, format_name):
            sites = {site: place_of(site, models[0], format_name).site for site in adapter.updates}
            return _renamed(adapter, sites, SingleFile(format_name, models), values)
    return adapter


def _renamed(adapter: Adapter, sites: Mapping[str, str], file: SingleFile, values: bool) -> Adapter:
    updates = {sites[site]: update for site, update in adapter.updates.items()}
    details = replace(
        adapter.details,
        file=file,
        initial=None,
        config=None,
        kernels={sites[site]: kernel for site, kernel in adapter.kernels.items()},
        names={new: adapter.details.names.get(old, old) for old, new in sites.items()},
    )
    metadata = adapter.metadata.model_copy(update={"initial": None})
    renamed = replace(adapter, updates=updates, details=details, metadata=metadata)
    if values:
        vars(renamed)["fingerprint"] = adapter.fingerprint
    return renamed


def _with_updates(adapter: Adapter, updates: Mapping[str, Update], values: bool) -> Adapter:
    """Return the same adapter with its updates split; its fingerprint is still that of its file."""
    changed = replace(adapter, updates=dict(updates))
    if values:
        vars(changed)["fingerprint"] = adapter.fingerprint
    return changed


def in_one_layout(adapters: Sequence[Adapter], names: Sequence[str], *, values: bool = True) -> list[Adapter]:
    """Return adapters with one site for each module, if at least one is a single file; others as they are.

    Args:
        adapters: at least one.
        names: of the adapters, for messages.
        values: whether their tensors have values, and not only shapes.

    Raises:
        FusionError: they are of different models, or of an unknown model in different formats.
    """
    if all(adapter.details.file is None for adapter in adapters):
        return list(adapters)
    known = [adopted(adapter, values=values) for adapter in adapters]
    files = [_file(name, adapter) for name, adapter in zip(names, known, strict=True)]
    for (a, x), (b, y) in combinations(zip(names, files, strict=True), 2):
        _check_pair(a, x, b, y)
    models = tuple(model for model in files[0].models if all(model in file.models for file in files))
    if not models:
        if files[0].models:
            got = ", ".join(f"{name}: {file.title}" for name, file in zip(names, files, strict=True))
            raise FusionError("no model has the names of all", got=got, where=_WHERE, fix="fuse adapters of one model")
        return known
    model = models[0]
    if any(has_pieces(a.updates, model) for a in known):
        return [
            _with_updates(a, split_fused(a.updates, model), values) if has_fused(a.updates, model) else a for a in known
        ]
    return known


def _file(name: str, adapter: Adapter) -> SingleFile:
    if adapter.details.file is None:
        what = f"{name} has the module names of no known model, and others are single files"
        fix = "give adapters of one model and, if it is unknown, of one format"
        raise FusionError(what, got=min(adapter.updates, default=None), where=_WHERE, fix=fix)
    return adapter.details.file


def _check_pair(a: str, x: SingleFile, b: str, y: SingleFile) -> None:
    if set(x.models) & set(y.models) or (not x.models and not y.models and x.format == y.format):
        return
    what = f"{a} is of {x.title} ({x.format} names), {b} of {y.title} ({y.format} names)"
    fix = "fuse adapters of one model"
    if not x.models or not y.models:
        fix += "; names of an unknown model cannot be converted, so give files of one format"
    raise FusionError(what, where=_WHERE, fix=fix)
