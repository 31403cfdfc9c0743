"""The format `mlx`: the folder of an adapter of mlx-lm.

    adapters.safetensors    <site>.lora_a [in, r], <site>.lora_b [r, out]
    adapter_config.json     fine_tune_type, num_layers, lora_parameters: rank, scale, keys

``ΔW = scale · (lora_a lora_b)ᵀ``: the scale is not divided by the rank. Written are one rank, filled up with zeros, and
the scale 1, since mlx-lm has one of each for all layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.formats.lora.layers import is_bias
from tangora.adapters.formats.lora.reading import CONFIG, WEIGHTS
from tangora.adapters.metadata import BaseInfo, Metadata, declared_kind
from tangora.adapters.stored import filled
from tangora.adapters.survey import surveyed
from tangora.errors import AdapterError
from tangora.storage.tensors import finite
from tangora.support.files import inside, read_json, read_safetensors, write_json, write_safetensors
from tangora.updates.task_vector import Dense, LowRank, Update

if TYPE_CHECKING:
    from tangora.adapters.contract import Survey
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["FORMAT"]

FILE = "adapters.safetensors"
_PART = re.compile(r"(?P<site>.+)\.lora_(?P<factor>[ab])")
_LAYER = re.compile(r".*\blayers\.\d+\.")
_EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|tok_embeddings)")
_FIX = "fuse it into its base with mlx_lm.fuse, or train it as lora"


class _MlxFormat:
    name: Final = "mlx"
    kind: Final = "lora"

    def recognizes(self, path: Path) -> bool:
        """Return whether mlx-lm's two files are there, and peft's is not."""
        files = (path / FILE).is_file() and (path / CONFIG).is_file() and not (path / WEIGHTS).is_file()
        return files and declared_kind(path) in (None, self.kind)

    def read(
        self, path: Path, about: Metadata | None, base: Checkpoint | None = None, *, lazily: bool = False
    ) -> Adapter:
        """Read all factors into memory; see `Format.read`."""
        config = read_json(inside(path, CONFIG))
        rank, scale = _rank_and_scale(config, path / CONFIG)
        file = inside(path, FILE)
        pairs: dict[str, dict[str, Tensor]] = {}
        for name, tensor in read_safetensors(file).items():
            match = _PART.fullmatch(name)
            if match is None:
                raise AdapterError("a tensor that is no factor of a LoRA", got=name, where=file, fix=_FIX)
            pairs.setdefault(match["site"], {})[match["factor"]] = finite(name, tensor, file)
        if not pairs:
            raise AdapterError("the file holds no LoRA weights", where=file, fix="check the path")
        updates: dict[str, Update] = {
            site: _update(pair, rank, scale, f"{site} in {file}") for site, pair in sorted(pairs.items())
        }
        model = config.get("model")
        about = about or Metadata(base=BaseInfo(model=model if isinstance(model, str) and model else None))
        embeddings = frozenset(site for site in updates if _EMBEDDING.fullmatch(site))
        return Adapter(updates, about, LoraDetails(embeddings=embeddings))

    def sample(self) -> dict[str, Update]:
        """Return updates that the format represents as they are: of one rank and one scale."""
        generator = torch.Generator().manual_seed(0)
        shapes = {"model.layers.0.self_attn.q_proj": (6, 4), "model.layers.1.mlp.up_proj": (3, 5)}
        return {
            site: LowRank(torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator), 20.0)
            for site, (rows, columns) in shapes.items()
        }

    def survey(self, path: Path, about: Metadata | None) -> Survey:
        """Describe an adapter."""
        return surveyed(self.read(path, about), [inside(path, FILE)])

    def prepare(self, adapter: Adapter) -> Adapter:
        """Return the adapter with one rank and one scale, for all of its sites."""
        factors = _plain(adapter)
        rank = max(update.rank for update in factors.values())
        scalings = {update.scaling for update in factors.values()}
        scale = scalings.pop() if len(scalings) == 1 else 1.0
        return replace(adapter, updates={site: filled(update, rank, scale) for site, update in factors.items()})

    def write(self, adapter: Adapter, folder: Path) -> None:
        """Write both files."""
        factors, dtype = _plain(self.prepare(adapter)), adapter.details.dtype or torch.float32
        tensors: dict[str, Tensor] = {}
        for site, update in factors.items():
            tensors[f"{site}.lora_a"] = update.a.T.to(dtype).cpu()
            tensors[f"{site}.lora_b"] = update.b.T.to(dtype).cpu()
        some = next(iter(factors.values()))
        rank, scale = some.rank, some.scaling
        keys = sorted({_LAYER.sub("", site) for site in factors})
        parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
        config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
        base = {"model": adapter.metadata.base.model} if adapter.metadata.base.model else {}
        write_json(folder / CONFIG, base | config)
        write_safetensors(folder / FILE, tensors)


def _rank_and_scale(config: Mapping[str, Any], path: Path) -> tuple[int | None, float]:
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora" or config.get("use_dora"):
        reason = "its changes depend on the base's weights, or are whole weights"
        raise AdapterError(f"fine_tune_type must be lora: {reason}", got=kind, where=path, fix=_FIX)
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, Mapping):
        raise AdapterError("lora_parameters are missing", where=path, fix="copy the file of mlx-lm again")
    if "alpha" in parameters:
        what = "lora_parameters has alpha, by which some versions of mlx-lm multiply and others do not"
        fix = "remove alpha, and set scale to the scale that was trained: scale · alpha / rank in those that multiply"
        raise AdapterError(what, got=parameters["alpha"], where=path, fix=fix)
    scale, rank = parameters.get("scale"), parameters.get("rank")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise AdapterError("lora_parameters.scale must be a finite number", got=scale, where=path, fix="correct it")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise AdapterError("lora_parameters.rank must be a whole number", got=rank, where=path, fix="correct it")
    return rank, float(scale)


def _update(pair: Mapping[str, Tensor], rank: int | None, scale: float, where: str) -> Update:
    if missing := {"a", "b"} - pair.keys():
        raise AdapterError(f"lora_{missing.pop()} is missing", where=where, fix="copy it again")
    a, b = pair["a"], pair["b"]
    got = f"lora_a {list(a.shape)}, lora_b {list(b.shape)}, rank {rank} in {CONFIG}"
    if a.ndim == b.ndim == 3:
        raise AdapterError("the factors of experts, which cannot be fused", got=got, where=where, fix=_FIX)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or (rank or a.shape[1]) != a.shape[1] or 0 in a.shape:
        raise AdapterError("the shapes do not fit each other or the rank", got=got, where=where, fix="copy it again")
    return LowRank(b.T.contiguous(), a.T.contiguous(), scale)


def _plain(adapter: Adapter) -> dict[str, LowRank]:
    odd = [site for site, update in adapter.updates.items() if is_bias(site, update) or "[" in site]
    odd += [*adapter.whole, *adapter.kernels]
    if odd or not adapter.updates:
        what = "mlx-lm has no biases, experts, convolutions, or parameters that are saved whole in an adapter"
        raise AdapterError(what, got=odd[:1], where="format", fix="write the format lora")
    found = {}
    for site, update in adapter.updates.items():
        factors = update.factors() or Dense(update.dense()).low_rank()
        found[site] = LowRank(factors.b, factors.a, factors.scaling)
    return found


FORMAT = _MlxFormat()
