"""Read an adapter from one file: its layout, and the updates of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.formats._single_file.header import PEFT, about_of
from tangora.adapters.formats._single_file.weights import weights_of
from tangora.adapters.formats.lora.lazy import LazyLowRank
from tangora.adapters.formats.lora.settings import check_config, rank_and_scaling
from tangora.adapters.layouts.details import SingleFile
from tangora.adapters.layouts.keys import REFUSED, Keys, sort_keys
from tangora.adapters.layouts.lookup import Place, models_of, place_of
from tangora.adapters.layouts.models import MODELS
from tangora.adapters.metadata import Metadata
from tangora.errors import AdapterError
from tangora.storage.header import FLOATS, Stored, read_file_metadata, read_header
from tangora.storage.tensors import finite, read_rows
from tangora.support.json_text import parse_json
from tangora.updates.task_vector import Update

__all__ = ["keys_of", "read_file"]

_DECLARED = ("ss_base_model_version", "modelspec.architecture")
_CONTEXT = ".attn2.to_k"
_UNKNOWN_SCALING = "the scaling is not known: the file has no alpha, and adapter_config.json is not beside it"


def keys_of(path: Path) -> tuple[dict[str, Stored], Keys]:
    """Return the header of a file, and the meaning of its names.

    Raises:
        FileError: the file is damaged.
        AdapterError: two tensors are the same.
    """
    header = read_header(path)
    return header, sort_keys(header, path)


def read_file(path: Path, format_name: str, about: Metadata | None, *, lazily: bool) -> Adapter:
    """Read an adapter in float32.

    Args:
        path: the file.
        format_name: of the format that recognizes it.
        about: its provenance, if it is known from elsewhere.
        lazily: leave plain factors in the file, and read them whenever they are needed.

    Raises:
        FileError: the file is damaged, or a number is not finite.
        AdapterError: a tensor is not understood, or its update depends on the base's weights.
    """
    header, keys = keys_of(path)
    _refuse_others(keys, path)
    metadata = read_file_metadata(path)
    file = SingleFile(format_name, _models(keys, header, format_name, metadata), metadata)
    stated = _Scalings.of(metadata, path)
    read = _Read(header, path, lazily)
    owners: dict[str, str] = {}
    for module, names in sorted(keys.modules.items()):
        place = _place(module, file)
        site = module if place is None else place.site
        site = site.removeprefix("base_model.model.") if format_name == "peft" else site
        if site in owners:
            what = f"two modules of the file are one: {owners[site]} and {module}"
            raise AdapterError(what, got=site, where=path, fix="copy it again, or remove one of them")
        owners[site] = module
        rank = header[names["A"]].shape[0] if "A" in names and header[names["A"]].shape else 0
        scaling = stated.of_site(module, names, rank)
        if format_name == "peft" and not file.models and scaling is None and "alpha" not in names:
            fix = "give the folder with both files, or add an alpha for each module"
            raise AdapterError(_UNKNOWN_SCALING, where=f"{module} in {path}", fix=fix)
        read.add(site, module, names, place, scaling)
    about = about or about_of(metadata, path) or Metadata()
    return Adapter(read.updates, about, LoraDetails(kernels=read.kernels, file=file))


@dataclass
class _Read:
    """Reads the modules of one file one after the other."""

    header: Mapping[str, Stored]
    path: Path
    lazily: bool
    updates: dict[str, Update] = field(default_factory=dict)
    kernels: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, site: str, module: str, names: Mapping[str, str], place: Place | None, scaling: float | None) -> None:
        """Read the update of a module."""
        where = f"{module} in {self.path}"
        kernel = None if place is None else place.modules[0].kernel
        if place is None and "hada_w1_a" in names and "hada_t1" not in names and _may_be_convolution(module):
            what = "LoHa's tensors do not tell a convolution's kernel, and the model is not known"
            raise AdapterError(what, where=where, fix="give an adapter of a known model, or of other layers")
        stored = {part: self.header[name] for part, name in names.items()}
        plain = names.keys() <= {"A", "B", "alpha"} and all(
            len(one.shape) == 2 and one.dtype in FLOATS for part, one in stored.items() if part != "alpha"
        )
        if self.lazily and plain and len(stored) > 1:
            self.updates[site] = self._lazy(stored, where, scaling)
            return
        parts = {part: _tensor(one, self.path) for part, one in stored.items()}
        weights = weights_of(parts, where, kernel, scaling)
        self.updates[site] = weights.update
        if weights.kernel is not None:
            self.kernels[site] = weights.kernel

    def _lazy(self, stored: Mapping[str, Stored], where: str, scaling: float | None) -> Update:
        parts = {
            part: _tensor(one, self.path) if part == "alpha" else torch.empty(one.shape, device="meta")
            for part, one in stored.items()
        }
        factors = weights_of(parts, where, None, scaling).update.factors()
        assert factors is not None
        return LazyLowRank(stored["B"], stored["A"], factors.scaling)


def _tensor(stored: Stored, path: Path) -> Tensor:
    if stored.dtype not in FLOATS:
        raise AdapterError("weights must be floating-point", got=stored.dtype, where=f"{stored.name} in {path}")
    rows = stored.shape[0] if stored.shape else 1
    return finite(stored.name, read_rows(stored, 0, rows).reshape(stored.shape), path)


def _refuse_others(keys: Keys, path: Path) -> None:
    for module, parts in keys.modules.items():
        for part, key in parts.items():
            if part in REFUSED:
                fix = "merge it into its base with the tool that trained it, or train it as plain LoRA"
                raise AdapterError(f"this cannot be fused: {REFUSED[part]}", got=key, where=path, fix=fix)
        if not module:
            raise AdapterError("a tensor of no module", got=parts, where=path)
    if keys.others:
        what = f"{len(keys.others)} tensors are none that a LoRA, LoHa or LoKr has"
        raise AdapterError(what, got=sorted(keys.others)[:3], where=path, fix="give a file of an adapter alone")


def _place(module: str, file: SingleFile) -> Place | None:
    return place_of(module, file.models[0], file.format) if file.models else None


def _models(keys: Keys, header: Mapping[str, Stored], format_name: str, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the models that have the file's names, as far as its metadata and widths agree."""
    models = models_of(keys.modules, format_name)
    for key in _DECLARED:
        if (declared := metadata.get(key, "").lower()) and declared != "unknown":
            models = tuple(model for model in models if MODELS[model].declared.search(declared))
    if len(models) < 2:
        return models
    widths = {
        header[parts["A"]].shape[1]
        for module, parts in keys.modules.items()
        if "A" in parts and place_of(module, models[0], format_name).site.endswith(_CONTEXT)
    }
    if len(widths) == 1:
        (width,) = widths
        return tuple(model for model in models if MODELS[model].context == width) or models
    return models


def _may_be_convolution(module: str) -> bool:
    return any(word in module for word in ("conv", "_op", ".op", "in_layers", "out_layers", "skip"))


@dataclass(frozen=True)
class _Scalings:
    """The configurations of peft that diffusers keeps in a file's metadata, by component."""

    configs: Mapping[str, Mapping[str, Any]]
    path: Path

    @classmethod
    def of(cls, metadata: Mapping[str, str], path: Path) -> _Scalings:
        """Parse them; empty if there are none."""
        if PEFT not in metadata:
            return cls({}, path)
        try:
            raw = parse_json(metadata[PEFT])
        except ValueError:
            raw = None
        if not isinstance(raw, dict):
            raise AdapterError(f"the metadata {PEFT} are damaged", where=path, fix="copy the file again")
        configs: dict[str, dict[str, Any]] = {}
        for key, value in raw.items():
            # A pipeline keeps the configurations of its parts, and a part alone its own.
            component, _, setting = key.rpartition(".")
            configs.setdefault(component, {"peft_type": "LORA"})[setting] = value
        for config in configs.values():
            check_config(config, path, with_base=False)
        return cls(configs, path)

    def of_site(self, module: str, names: Mapping[str, str], rank: int) -> float | None:
        """Return the scaling of a module that they state; None if they do not, or if it is no plain LoRA."""
        component, _, site = module.partition(".")
        if component not in self.configs:
            component, site = "", module
        if "A" not in names or component not in self.configs:
            return None
        stated, scaling = rank_and_scaling(self.configs[component], site)
        if stated != rank:
            got = f"{rank} in the tensors, {stated} in {PEFT}"
            raise AdapterError("the ranks disagree", got=got, where=f"{module} in {self.path}", fix="copy it again")
        return scaling
