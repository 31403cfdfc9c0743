"""Read the files of a PEFT LoRA directory as updates, without peft."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tangora.adapters.formats.lora.base_dependent import BaseWeights, convert
from tangora.adapters.formats.lora.layers import check_tied, expert_of, is_bias, kernel_of, updates_of
from tangora.adapters.formats.lora.lazy import read_lazily
from tangora.adapters.formats.lora.names import sort_tensors
from tangora.adapters.formats.lora.settings import check_config
from tangora.errors import AdapterError
from tangora.storage.tensors import finite
from tangora.support.files import inside, read_json, read_safetensors
from tangora.updates.task_vector import Update

if TYPE_CHECKING:
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["CONFIG", "PICKLE", "WEIGHTS", "PeftFolder", "read_peft", "refuse_pickle", "weights_path"]

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclass(frozen=True)
class PeftFolder:
    """The content of a PEFT directory.

    Attributes:
        updates: site -> update; a bias's is named ``<site>.bias``, an expert's ``<layer>[e]``.
        config: the configuration.
        embeddings: the sites that are embeddings.
        kernels: site -> ``(in, k₁, k₂, …)`` of a convolution.
        whole: parameter of the base -> the value that replaces it.
    """

    updates: dict[str, Update]
    config: dict[str, Any]
    embeddings: frozenset[str]
    kernels: dict[str, tuple[int, ...]]
    whole: dict[str, Tensor]


def read_peft(folder: Path, base: Checkpoint | None = None, *, lazily: bool = False) -> PeftFolder:
    """Read a PEFT directory in float32.

    Args:
        folder: the directory.
        base: the adapter's base model, if its updates depend on the base's weights.
        lazily: leave plain factors in their file, and read them whenever they are needed.

    Raises:
        AdapterError: a file is missing, corrupt, or not finite, or the adapter is no change of the base's weights.
    """
    refuse_pickle(folder)
    path = folder / CONFIG
    config = read_json(inside(folder, CONFIG))
    check_config(config, path, base is not None)
    path = weights_path(folder)
    needs_all = base is not None or config.get("use_dora") or config.get("ensure_weight_tying")
    if lazily and not needs_all and (lazy := read_lazily(path, config)) is not None:
        return PeftFolder(dict(lazy[0]), config, lazy[1], {}, {})
    tensors = {name: finite(name, tensor, path) for name, tensor in read_safetensors(path).items()}
    named = sort_tensors(tensors, config, path)
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
        raise AdapterError("a site has no lora_magnitude_vector", where=path, fix="copy it again")
    if base is not None:
        shapes = {site: u.shape for site, u in updates.items() if not is_bias(site, u) and expert_of(site) is None}
        weights = BaseWeights(base, shapes, embeddings, config)
        updates, whole = convert(updates, norms, whole, weights)
    return PeftFolder(updates, config, embeddings, kernels, whole)


def weights_path(folder: Path) -> Path:
    """Return the path of the weights.

    Raises:
        AdapterError: there are none, or only a pickle.
    """
    refuse_pickle(folder)
    return inside(folder, WEIGHTS)


def refuse_pickle(folder: Path) -> None:
    """Refuse a folder in which peft would load a pickle.

    Raises:
        AdapterError: it holds a pickle only.
    """
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        fix = "if you trust it, load it with peft, and save it again as safetensors"
        raise AdapterError(
            "the weights are a pickle, which can run code, and is refused", where=folder / PICKLE, fix=fix
        )
