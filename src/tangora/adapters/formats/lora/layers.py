"""Turn one layer's tensors into updates: linear layers, embeddings, convolutions, biases, and parameters of experts.

linear, transformers' Conv1D   ΔW [out, in] = s·B A
embedding                      ΔE [dim, vocabulary] = s·B A
convolution                    ΔW [out, in·k₁·k₂…] = s·B A: A is a kernel, B one of size 1
bias of B (lora_bias)          Δb [out] = s·b, an update of its own named ``<site>.bias``
parameter [experts, ·, ·]      one update per expert e, ``<site>[e]``: A [experts·r, in] holds the experts one
                               after the other, B [out, r·experts] has them side by side within every rank
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.adapters.formats.lora.settings import parameters_of, rank_and_scaling
from tangora.errors import AdapterError
from tangora.updates.task_vector import Dense, Factors, LowRank, Update

__all__ = [
    "check_tied",
    "expert_of",
    "experts_of",
    "is_attention",
    "is_bias",
    "join_experts",
    "kernel_of",
    "layer_of",
    "updates_of",
    "weight_of",
]

_EXPERT = re.compile(r"^(?P<layer>.+)\[(?P<index>\d+)\]$")


def expert_of(site: str) -> tuple[str, int] | None:
    """Return the layer and the number of an expert, from the site's name; None if the site is no expert's."""
    match = _EXPERT.match(site)
    return (match["layer"], int(match["index"])) if match else None


def is_bias(site: str, update: Update) -> bool:
    """Return whether an update of a low-rank adapter is that of a layer's bias."""
    return site.endswith(".bias") and len(update.shape) == 1


def layer_of(site: str) -> str:
    """Return the path of a site's module in the base; peft nests the wrappers of one module's parameters."""
    expert = expert_of(site)
    return (expert[0] if expert else site).replace(".base_layer", "")


def is_attention(site: str, sites: Collection[str]) -> bool:
    """Return whether a site is a `torch.nn.MultiheadAttention`: its output projection is adapted inside its wrapper."""
    return f"{site}.base_layer.out_proj" in sites


def weight_of(site: str, sites: Collection[str]) -> str:
    """Return the parameter of the base that a site's update is added to.

    >>> weight_of("attn", ["attn", "attn.base_layer.out_proj"]), weight_of("attn.base_layer.out_proj", [])
    ('attn.in_proj_weight', 'attn.out_proj.weight')
    """
    return f"{layer_of(site)}.{'in_proj_weight' if is_attention(site, sites) else 'weight'}"


def kernel_of(pair: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return ``(in, k₁, k₂, …)`` of a convolution; None for any other layer."""
    return tuple(pair["A"].shape[1:]) if pair["A"].ndim > 2 else None


def updates_of(
    site: str, kind: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
) -> dict[str, Update]:
    """Return a layer's updates by the names of their sites.

    Raises:
        AdapterError: a factor is missing, or the shapes do not fit each other or the configuration.
    """
    where = f"{site} in {path}"
    for here, missing in (("A", "B"), ("B", "A")):
        if missing not in pair:
            raise AdapterError(f"{kind}_{here} without {kind}_{missing}", where=where, fix="copy it again")
    if parameters := parameters_of(config, layer_of(site)):
        return _expert_updates(site, pair, *_common_rank_and_scaling(parameters, config, where), where)
    a, b = _matrices(pair["A"], pair["B"], where)
    rank, scaling = rank_and_scaling(config, site)
    _check_ranks(pair, a.shape[0], b.shape[1], rank, where)
    updates: dict[str, Update] = {site: LowRank(b, a, scaling)}
    if "bias" in pair:
        if pair["bias"].shape != b.shape[:1]:
            got = f"bias {tuple(pair['bias'].shape)}, B {tuple(b.shape)}"
            raise AdapterError("the bias does not fit B", got=got, where=where, fix="save the adapter again")
        updates[f"{site}.bias"] = Dense(pair["bias"] * scaling)
    return updates


def _matrices(a: Tensor, b: Tensor, where: str) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
    if a.ndim == b.ndim == 2:
        return a, b
    got = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
    if not 3 <= a.ndim == b.ndim <= 5 or any(size != 1 for size in b.shape[2:]) or 0 in a.shape:
        raise AdapterError("factors of no known kind of layer", got=got, where=where, fix="copy it again")
    if b.shape[1] != a.shape[0]:
        fix = "train it again without that layer"
        raise AdapterError("a grouped convolution: its update is not B A", got=got, where=where, fix=fix)
    return a.flatten(1), b.flatten(1)


def _check_ranks(pair: Mapping[str, Tensor], rows: int, columns: int, rank: int, where: str) -> None:
    if rows != columns or rows != rank:
        got = f"A {tuple(pair['A'].shape)}, B {tuple(pair['B'].shape)}, rank {rank} in adapter_config.json"
        raise AdapterError("the ranks disagree", got=got, where=where, fix="save the adapter again")


def _common_rank_and_scaling(parameters: list[str], config: Mapping[str, Any], where: str) -> tuple[int, float]:
    """Return the rank and scaling of all of a module's parameters: the file does not name a tensor's parameter."""
    pairs = {rank_and_scaling(config, name) for name in parameters}
    if len(pairs) > 1:
        what = "rank_pattern distinguishes parameters of one module, but the file does not"
        raise AdapterError(what, where=where, fix="train it again with one rank and one alpha for them")
    return pairs.pop()


def _expert_updates(site: str, pair: Mapping[str, Tensor], rank: int, scaling: float, where: str) -> dict[str, Update]:
    a, b = pair["A"], pair["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] % rank or not a.shape[0]:
        _check_ranks(pair, -1, 0, rank, where)
    count = a.shape[0] // rank
    rows, columns = a.reshape(count, rank, -1), b.reshape(b.shape[0], rank, count)
    return {f"{site}[{e}]": LowRank(columns[:, :, e].contiguous(), rows[e], scaling) for e in range(count)}


def check_tied(updates: Mapping[str, Update], embeddings: Collection[str], path: Path) -> None:
    """Refuse a tied linear layer if its update is not the transpose of the embedding's.

    Raises:
        AdapterError: the two differ, and peft would give one of them the other's factors.
    """
    inputs = [factors for site in embeddings if (factors := updates[site].factors()) is not None]
    for site, update in updates.items():
        mine = update.factors()
        if site in embeddings or mine is None:
            continue
        tied = [f for f in inputs if f.shape == mine.shape[::-1] and f.rank == mine.rank]
        if tied and not any(f.a.equal(mine.b.T) and f.b.equal(mine.a.T) for f in tied):
            fix = "set it to false, if the two were trained apart"
            raise AdapterError(
                "ensure_weight_tying: its factors are not the embedding's", where=f"{site} in {path}", fix=fix
            )


def experts_of(updates: Mapping[str, Factors]) -> dict[str, list[Factors]]:
    """Return layer -> the updates of its experts, in order.

    Raises:
        AdapterError: an expert between others is missing.
    """
    numbered: dict[str, dict[int, Factors]] = {}
    for site, update in updates.items():
        if expert := expert_of(site):
            numbered.setdefault(expert[0], {})[expert[1]] = update
    for layer, experts in numbered.items():
        if sorted(experts) != list(range(len(experts))):
            raise AdapterError("an expert is missing", got=sorted(experts)[:20], where=layer, fix="give all of them")
    return {layer: [experts[i] for i in range(len(experts))] for layer, experts in numbered.items()}


def join_experts(experts: list[Factors], rank: int) -> tuple[Tensor, Tensor]:
    """Return A ``[experts·r, in]`` and B ``[out, r·experts]`` of scaling 1, padded with zeros to the rank."""
    first = experts[0]
    a = first.a.new_zeros(len(experts), rank, first.shape[1])
    b = first.b.new_zeros(first.shape[0], rank, len(experts))
    for e, update in enumerate(experts):
        a[e, : update.rank] = update.a
        b[:, : update.rank, e] = torch.mul(update.b, update.scaling)
    return a.flatten(0, 1), b.flatten(1)
