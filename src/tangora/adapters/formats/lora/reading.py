"""The files of a PEFT LoRA directory as updates, read without peft."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tangora.adapters.formats.lora.based import Weights, convert
from tangora.adapters.formats.lora.filed import read_filed
from tangora.adapters.formats.lora.layers import check_tied, expert_of, is_bias, kernel_of, updates_of
from tangora.adapters.formats.lora.names import sorted_out
from tangora.adapters.formats.lora.settings import check_config
from tangora.errors import AdapterError
from tangora.storage.tensors import finite
from tangora.support.files import inside, read_json, read_safetensors
from tangora.updates.task_vector import Update

if TYPE_CHECKING:
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["CONFIG", "PICKLE", "WEIGHTS", "Read", "read_peft", "weights_path"]

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclass(frozen=True)
class Read:
    """The content of a PEFT directory.

    Attributes:
        updates: site -> update; a bias's is named ``<site>.bias``, an expert's ``<layer>[e]``.
        config: the configuration.
        embeddings: the sites that are embeddings.
        kernels: site -> ``(in, k₁, k₂, …)`` where it is a convolution.
        whole: parameter of the base -> the value that replaces it.
    """

    updates: dict[str, Update]
    config: dict[str, Any]
    embeddings: frozenset[str]
    kernels: dict[str, tuple[int, ...]]
    whole: dict[str, Tensor]


def read_peft(folder: Path, base: Checkpoint | None = None, *, lazily: bool = False) -> Read:
    """A PEFT directory in float32.

    Args:
        folder: the directory.
        base: the model that the adapter is for, where its updates depend on that.
        lazily: plain factors stay in their file, and are read whenever they are asked for.

    Raises:
        AdapterError: a file is missing, corrupt, or not finite, or the adapter is no change of the base's weights.
    """
    path = folder / CONFIG
    config = read_json(inside(folder, CONFIG))
    check_config(config, path, base is not None)
    path = weights_path(folder)
    whole_only = base is not None or config.get("use_dora") or config.get("ensure_weight_tying")
    if lazily and not whole_only and (filed := read_filed(path, config)) is not None:
        return Read(dict(filed[0]), config, filed[1], {}, {})
    tensors = {name: finite(name, tensor, path) for name, tensor in read_safetensors(path).items()}
    named = sorted_out(tensors, config, path)
    updates: dict[str, Update] = {}
    kernels: dict[str, tuple[int, ...]] = {}
    for (site, kind), pair in sorted(named.factors.items()):
        if site in updates:
            raise AdapterError("two updates of one site", where=f"{site} in {path}")
        updates |= updates_of(site, kind, pair, config, path)
        if kernel := kernel_of(pair):
            kernels[site] = kernel
    if not updates:
        raise AdapterError("the file holds no LoRA weights", where=path, fix="check the path")
    embeddings = frozenset(site for site, kind in named.factors if kind == "lora_embedding")
    if config.get("ensure_weight_tying"):
        check_tied(updates, embeddings, path)
    whole, norms = named.whole, {site: pair["norm"] for (site, _), pair in named.factors.items() if "norm" in pair}
    if config.get("use_dora") and len(norms) < len(named.factors):
        raise AdapterError("a site without lora_magnitude_vector", where=path, fix="copy it again")
    if base is not None:
        shapes = {site: u.shape for site, u in updates.items() if not is_bias(site, u) and expert_of(site) is None}
        weights = Weights(base, shapes, embeddings, config)
        updates, whole = convert(updates, norms, whole, weights)
    return Read(updates, config, embeddings, kernels, whole)


def weights_path(folder: Path) -> Path:
    """Where the weights are.

    Raises:
        AdapterError: there are none, or only as a pickle.
    """
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        fix = "load it with peft where you trust it, and save it again as safetensors"
        raise AdapterError(
            "the weights are a pickle, which can run code, and is refused", where=folder / PICKLE, fix=fix
        )
    return inside(folder, WEIGHTS)
