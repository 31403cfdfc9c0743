"""Read a PEFT directory of any kind that changes weights, with the base's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.formats.lora.reading import weights_path
from tangora.adapters.formats.tuners.files import config_of, lora_config, sort_tensors
from tangora.adapters.formats.tuners.merging import Changes, MergedUpdate, layer_kind
from tangora.adapters.formats.tuners.skeleton import Wrapped, peft_settings, wrap
from tangora.adapters.metadata import BaseInfo, Metadata
from tangora.errors import AdapterError
from tangora.storage.names import Names
from tangora.storage.tensors import finite, read_rows
from tangora.support.files import read_safetensors
from tangora.updates.task_vector import Dense, LowRank, Update

if TYPE_CHECKING:
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["base_of", "read_tuner"]


def base_of(config: Mapping[str, Any]) -> Metadata:
    """Return metadata with the base that a configuration names."""
    name = config.get("base_model_name_or_path") or None
    return Metadata(base=BaseInfo(model=name, revision=config.get("revision")))


def read_tuner(folder: Path, about: Metadata | None, base: Checkpoint | None) -> Adapter:
    """Read an adapter as changes of the base's weights; each is computed anew whenever it is needed.

    Args:
        folder: of the adapter.
        about: the content of ``tangora.json``.
        base: the adapter's base model.

    Raises:
        AdapterError: there is no base, the kind changes no weights, or stock peft does not load or merge it.
    """
    config, tuner = config_of(folder)
    path = weights_path(folder)
    if base is None:
        what = f"{tuner.title} is computed by peft's own layers, on those of the base"
        fix = "give the base's folder, with --base or base="
        raise AdapterError(what, got=f"peft_type {config['peft_type']}", where=folder, fix=fix)
    settings = peft_settings(config, tuner, folder)
    read = {n: finite(n, t, path) if t.is_floating_point() else t for n, t in read_safetensors(path).items()}
    tensors = sort_tensors(read, config, tuner, path)
    wrapped = wrap(tensors.own, settings, config, tuner, base, folder)
    found = _Found(Changes(wrapped, tuner.title))
    for site in sorted(wrapped.layers):
        found.add(site)
    for name, bias in _differences(tensors.biases, wrapped).items():
        if name in found.updates:
            what = f"{tuner.title} changes a bias that was also trained by itself"
            raise AdapterError(what, got=name, where=folder, fix="train it again with bias='none'")
        found.updates[name] = bias
    turned = any(type(layer.get_base_layer()).__name__ == "Conv1D" for layer in wrapped.layers.values())
    details = LoraDetails(
        lora_config(config, found.norms, turned), None, frozenset(found.embeddings), found.kernels, tuner=tuner.title
    )
    updates, whole = dict(sorted(found.updates.items())), {**tensors.whole, **found.whole}
    return Adapter(updates, about or base_of(config), details, whole)


class _Found:
    """What the layers of an adapter turn out to change."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.updates: dict[str, Update] = {}
        self.whole: dict[str, Tensor] = {}
        self.embeddings: list[str] = []
        self.kernels: dict[str, tuple[int, ...]] = {}
        self.norms: list[str] = []

    def add(self, site: str) -> None:
        """Merge a layer once, check it, and keep the form of its change; of a matrix, not the numbers."""
        layer, changed = self.changes.wrapped.layers[site].get_base_layer(), self.changes.checked(site)
        kind = layer_kind(layer)
        if odd := changed.keys() - {"weight", "bias"}:
            where = f"{site} in {self.changes.wrapped.where}"
            raise AdapterError("a parameter that is neither weight nor bias is changed", got=min(odd), where=where)
        if kind == "norm":
            self.norms.append(site)
            for name in changed:
                value = self.changes.before(site, name)
                self.whole[f"{site}.{name}"] = (value.double() + changed[name]).to(value.dtype)
            return
        if "bias" in changed:
            self.updates[f"{site}.bias"] = Dense(changed["bias"].float())
        update = self.changes.oriented(site, changed["weight"])
        if kind == "embedding":
            self.embeddings.append(site)
        elif kind == "convolution":
            self.kernels[site] = tuple(layer.weight.shape[1:])
        few = _of_few_tokens(update) if kind == "embedding" else None
        self.updates[site] = few or MergedUpdate(self.changes, site, tuple(update.shape))


def _of_few_tokens(update: Tensor) -> LowRank | None:
    """Return an embedding's change of few tokens as factors: their columns, and where they are."""
    columns = update.any(0).nonzero().flatten()
    if not 0 < len(columns) <= min(update.shape) // 2:
        return None
    where = update.new_zeros(len(columns), update.shape[1])
    where[torch.arange(len(columns)), columns] = 1.0
    return LowRank(update[:, columns].contiguous(), where)


def _differences(biases: Mapping[str, Tensor], wrapped: Wrapped) -> dict[str, Dense]:
    """Return biases that were trained beside the adapter as changes of the base's."""
    names = Names(wrapped.base, {name: tuple(bias.shape) for name, bias in biases.items()}, wrapped.config)
    changes = {}
    for name, bias in biases.items():
        stored = wrapped.base.tensors[names(name)]
        changes[name] = Dense(bias - read_rows(stored, 0, stored.shape[0]).flatten())
    return changes
