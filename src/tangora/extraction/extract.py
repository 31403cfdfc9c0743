"""`extract`: a LoRA from a full fine-tuned checkpoint and the base that it was tuned from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tangora.adapters.adapter import Adapter, BaseInfo, LoraDetails, Metadata
from tangora.adapters.extracted import ExtractedInfo
from tangora.adapters.in_peft.verification import verify
from tangora.adapters.stored import dtype_of
from tangora.checkpoints.beside_adapters import beside_adapters
from tangora.errors import ArgumentError
from tangora.extraction.chosen import Rank, Site, site_of, within
from tangora.extraction.deltas import value_of
from tangora.extraction.pairs import Model, Pair, pair
from tangora.extraction.parts import Embeddings, Parts, sort
from tangora.extraction.readback import check_written
from tangora.progress import Progress
from tangora.storage.checkpoint import Checkpoint, open_checkpoint, refuse_quantized
from tangora.storage.recognition import contents_of
from tangora.support.files import refuse_output
from tangora.support.names import hub_name
from tangora.support.sizes import bytes_of
from tangora.updates.ranks import check_bound
from tangora.updates.update import Dense, LowRank, Update

__all__ = ["ERROR", "extract"]

ERROR = 0.05
"""The default bound of a site's relative error with ``rank="auto"``."""


def extract(
    tuned: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    rank: Rank = "auto",
    error: float = ERROR,
    budget: int | str | None = None,
    embeddings: Embeddings = "whole",
    leave_out: Sequence[str] = (),
    dtype: str = "float32",
    overwrite: bool = False,
    check: bool = True,
    progress: Progress | None = None,
) -> Adapter:
    """Extract a LoRA from a full fine-tuned checkpoint: the best low-rank approximation of what tuning changed.

    .. math:: \\theta_t - \\theta_0 \\approx B A

    At every linear layer, ``Conv1D`` and convolution, B A is the truncated singular value decomposition of the change,
    which is the best of its rank (Eckart-Young). Biases of these layers are kept exactly, and layers that LoRA does not
    adapt (norms, embeddings, new heads) are saved whole. One pair of weights is in memory at a time, beside the result.
    Large matrices are decomposed by a randomized range finder; the stated errors are measured on the factors as they
    are written, against both checkpoints in float64, and do not depend on it.

    Args:
        tuned: the folder of the tuned model: ``config.json`` and safetensors, in any number of shards.
        base: the folder of the model that it was tuned from.
        out: the folder to write; None to return the adapter only.
        rank: the largest rank of a site; ``auto`` for the least that leaves an error of at most ``error`` at each.
        error: the relative error (Frobenius) of a site, with ``auto``.
        budget: of the factors of all sites, in bytes or such as ``"500MB"``, with ``auto``: where the bound takes more,
            ranks go where they keep most for a byte, and errors are larger.
        embeddings: ``whole`` saves embeddings and output heads over tokens as they are, which is exact but as large as
            they are; ``lora`` makes factors of them, as of other weights, unless they have more rows than the base's.
        leave_out: names of parameters to leave out, or patterns with ``*``.
        dtype: of the file: ``float32``, ``bfloat16`` or ``float16``; the errors include the rounding to it.
        overwrite: replace an output that exists.
        check: read the output again and compare it with both checkpoints before publishing it.
        progress: receives every tensor.

    Returns:
        the adapter; ``metadata.extracted`` has its errors and what is left out.

    Raises:
        FusionError: nothing changed; the two have different architectures, layers or shapes; a parameter changed that
            no adapter can hold.
        ArgumentError: an option is invalid, or asks for what peft cannot compute; a folder holds an adapter.
        FileError: a folder is not a checkpoint, is quantized, or damaged.
        OutputError: the output exists or cannot be written.

    >>> import tangora
    >>> adapter = tangora.extract("tuned", "encoder", rank=4)
    >>> adapter.metadata.extracted.rank
    4
    """
    if out is not None:
        refuse_output(Path(out), overwrite, [tuned, base])
    request = _Request(rank, check_bound(error, "extract.error"), _budget(budget, rank), dtype_of(dtype))
    if embeddings not in ("whole", "lora"):
        raise ArgumentError("embeddings are whole or lora", got=embeddings, where="extract.embeddings")
    listener = progress or Progress()
    models = [_opened(folder) for folder in (tuned, base)]
    for model in models:
        refuse_quantized(model)
    paired = pair(*models)
    parts = sort(paired, models[0], embeddings, leave_out, listener)
    sites = _sites(parts, request, listener)
    whole = {name: found for layer in parts.whole for name, found in _parameters(paired, layer)}
    whole |= {one.name: one for one in parts.biases if not _adds_biases(paired, parts)}
    adapter = _adapter(paired, parts, sites, whole, request, models, Path(base))
    if out is not None:
        beside = beside_adapters([models[0].folder])[0] if _has_new_rows(whole) else {}

        def checked(written: Adapter, folder: Path) -> Mapping[str, Any]:
            check_written(written, folder, sites, whole, request.dtype)
            return verify(written, folder).to_dict()

        adapter.save(out, overwrite=overwrite, check=checked if check else None, beside=beside)
    return adapter


def _opened(folder: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint; of an adapter, say that there is nothing to extract."""
    if Path(folder).is_dir() and contents_of(Path(folder)) == "adapter":
        fix = "give the fine-tuned model, then its base: extract makes an adapter of the two, and this is one already"
        raise ArgumentError("an adapter where a full checkpoint is needed", where=str(folder), fix=fix)
    return open_checkpoint(folder)


@dataclass(frozen=True)
class _Request:
    rank: Rank
    bound: float
    budget: int | None
    dtype: torch.dtype

    def __post_init__(self) -> None:
        rank = self.rank
        if rank != "auto" and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ArgumentError("rank must be auto, or a whole number of at least 1", got=rank, where="extract.rank")


def _budget(budget: int | str | None, rank: Rank) -> int | None:
    if budget is None:
        return None
    if rank != "auto":
        fix = "give --rank auto, or leave the budget out"
        raise ArgumentError("a rank and a budget", got=rank, where="extract.rank", fix=fix)
    return bytes_of(budget, "extract.budget")


def _sites(parts: Parts, request: _Request, progress: Progress) -> list[Site]:
    """Return the factors of all sites; layers of which only the bias changed are not among them."""
    sites = []
    progress.begin("extract, sites", len(parts.sites))
    for count, one in enumerate(parts.sites, 1):
        square = parts.changed[one.name].square
        sites.append(site_of(one, square, request.rank, request.bound, request.dtype))
        progress.update(count, one.layer)
    progress.end()
    if request.budget is None or not sites:
        return sites
    size = request.dtype.itemsize
    if size * sum(site.cost * site.update.rank for site in sites) <= request.budget:
        return sites
    ranks = within(sites, request.budget, size)
    return [site.cut(ranks[site.pair.layer]) for site in sites]


def _parameters(model: Model, layer: str) -> list[tuple[str, Pair]]:
    """Return the parameters of a layer that is saved whole, by their names."""
    inner = model.paths[layer].state_dict()
    found = {f"{layer}.{leaf}": model.pair_of(f"{layer}.{leaf}") for leaf in inner}
    return [(name, pair) for name, pair in found.items() if pair is not None]


def _has_new_rows(whole: Mapping[str, Pair]) -> bool:
    return any(one.grown for one in whole.values())


def _adapter(
    model: Model,
    parts: Parts,
    sites: Sequence[Site],
    whole: Mapping[str, Pair],
    request: _Request,
    models: Sequence[Checkpoint],
    base: Path,
) -> Adapter:
    updates: dict[str, Update] = {site.pair.layer: site.update for site in sites}
    for one in parts.biases if _adds_biases(model, parts) else ():
        updates.setdefault(one.layer, _nothing(model, one.layer))
        updates[f"{one.layer}.bias"] = Dense(_change(one).to(request.dtype).float())
    where = hub_name(os.path.abspath(base)) or str(base)
    named = model.task_type
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": where,
        "task_type": named,
        "bias": "all" if any(one.name in whole for one in parts.biases) else "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": bool(parts.sites) and all(one.kind == "conv1d" for one in parts.sites),
        "modules_to_save": parts.whole or None,
        "auto_mapping": None if named else _auto_mapping(model),
    }
    kernels = {s.pair.layer: s.pair.tuned.shape[1:] for s in sites if s.pair.kind == "convolution"}
    tables = frozenset(s.pair.layer for s in sites if s.pair.kind == "embedding")
    dtype = None if request.dtype == torch.float32 else request.dtype
    values = {name: value_of(one).to(request.dtype).float() for name, one in whole.items()}
    info = _info(parts, sites, whole, request, models[0])
    metadata = Metadata(base=BaseInfo(model=where), extracted=info)
    return Adapter(updates, metadata, LoraDetails(config, None, tables, kernels, dtype), values)


def _adds_biases(model: Model, parts: Parts) -> bool:
    """Return whether changes of biases are added beside factors; else biases are saved whole.

    peft merges the former only if every layer that it adapts has a bias, and has none beside an embedding.
    """
    layers = {one.layer for one in (*parts.sites, *parts.biases)}
    tables = any(one.kind == "embedding" for one in parts.sites)
    return not tables and all(model.pair_of(f"{layer}.bias") is not None for layer in layers)


def _nothing(model: Model, layer: str) -> LowRank:
    """Return factors of zero for a layer of which only the bias changed: peft has no change of a bias without them."""
    weight = model.pair_of(f"{layer}.weight")
    assert weight is not None  # a layer with a bias has a weight
    out, inside = weight.shape
    return LowRank(torch.zeros(out, 1), torch.zeros(1, inside))


def _change(one: Pair) -> Tensor:
    assert one.base is not None  # a new bias makes its layer one that is saved whole
    return (value_of(one).double() - value_of(_of_base(one)).double()).float()


def _of_base(one: Pair) -> Pair:
    assert one.base is not None
    return Pair(one.name, one.layer, one.kind, one.base, one.base)


def _auto_mapping(model: Model) -> dict[str, str]:
    kind = type(model.modules)
    return {"base_model_class": kind.__name__, "parent_library": kind.__module__}


def _info(
    parts: Parts,
    sites: Sequence[Site],
    whole: Mapping[str, Pair],
    request: _Request,
    tuned: Checkpoint,
) -> ExtractedInfo:
    total = math.fsum(delta.square for delta in parts.changed.values())
    lost = math.fsum(site.square * site.error**2 for site in sites)
    left = {name: parts.changed[name].square for name in parts.left_out}
    rounded = math.fsum(_rounded(value_of(one), request.dtype) for one in whole.values())
    rounded += math.fsum(_rounded(_change(one), request.dtype) for one in parts.biases if one.name not in whole)
    noise = math.fsum(delta.rounding for delta in parts.changed.values())
    return ExtractedInfo(
        tuned=tuned.name,
        fingerprint=tuned.fingerprint,
        rank=request.rank,
        bound=request.bound if request.rank == "auto" else None,
        budget=request.budget,
        error=_root(lost, math.fsum(site.square for site in sites)),
        total_error=_root(lost + rounded + math.fsum(left.values()), total),
        site_errors={site.pair.layer: site.error for site in sites},
        whole=parts.whole,
        left_out={name: square / total for name, square in left.items()},
        rounding=_root(noise, total),
    )


def _rounded(value: Tensor, dtype: torch.dtype) -> float:
    return float((value.double() - value.to(dtype).double()).square().sum())


def _root(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole > 0 else 0.0
