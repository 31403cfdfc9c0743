"""Take experts apart for WEMoE: their MLPs, which gates weigh, and everything else, which is added once.

experts, backbone ─ parts_of ─▶ MlpParts: blocks, the changes of their layers, the rest by task arithmetic
                                   │ pruned (E-WEMoE)
gates ────────── block_network ────┴─▶ RoutedNetwork
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.errors import FusionError
from tangora.modular.banks import DenseBank, SparseBank, largest
from tangora.modular.gates import Gate
from tangora.modular.mlps import MlpBlock, mlps_of
from tangora.modular.routed import Bank, FixedSettings, RoutedNetwork, RoutedSettings, SiteSettings
from tangora.routing.assembly import expert_sites, fill_bank
from tangora.updates.task_vector import Dense, LowRank, Update, combine

__all__ = ["MlpParts", "MlpSite", "block_network", "factored", "parts_of", "pruning_error", "sparse"]


@dataclass(frozen=True)
class MlpSite:
    """A layer of an MLP, and what the experts change in it.

    Attributes:
        block: the name of its block.
        shape: ``(out, in)`` of its weight.
        matrices: of each expert; None for one that does not change the weight.
        biases: the changes of the bias, of each expert; None if no expert changes it.
        kept: entries of each matrix that are kept; None for all.
    """

    block: str
    shape: tuple[int, int]
    matrices: Sequence[Update | None]
    biases: Sequence[Tensor | None] | None = None
    kept: int | None = None

    @property
    def low_rank(self) -> list[LowRank | None] | None:
        """The matrices as factors; None if one of them has none."""
        factors = [None if one is None else one.factors() for one in self.matrices]
        if any(one is not None and f is None for one, f in zip(self.matrices, factors, strict=True)):
            return None
        return [None if f is None else LowRank(f.b.float(), f.a.float(), f.scaling) for f in factors]


@dataclass(frozen=True)
class MlpParts:
    """Experts, taken apart.

    Attributes:
        blocks: those in which an expert changes a layer.
        sites: layer -> its experts.
        fixed: layer -> the update that is added for every input.
        changes: parameter -> the change that is added once; of experts that were fine-tuned whole.
    """

    blocks: Sequence[MlpBlock]
    sites: Mapping[str, MlpSite]
    fixed: Mapping[str, LowRank]
    changes: Mapping[str, Tensor]


def parts_of(experts: Mapping[str, Adapter], backbone: nn.Module, pattern: str | None, coefficient: float) -> MlpParts:
    """Take experts apart.

    Args:
        experts: all of kind ``lora``, or all of kind ``full``.
        backbone: their base's.
        pattern: of the MLPs; see `tangora.modular.mlps.mlps_of`.
        coefficient: of every expert's changes outside of the MLPs.

    Raises:
        FusionError: no expert changes a layer of an MLP; or an expert changes something else than linear layers.
        ModelError: the model has no MLP.
    """
    blocks = mlps_of(backbone, pattern)
    owner = {layer: block.name for block in blocks for layer in block.layers}
    whole = next(iter(experts.values())).metadata.kind == "full"
    parts = (_of_weights if whole else _of_factors)(experts, backbone, owner, coefficient)
    if not parts.sites:
        fix = f"route experts of layers such as {', '.join(blocks[0].layers)}, or name the blocks: blocks=..."
        raise FusionError("no expert changes a layer of an MLP", where="fuse.adapters", fix=fix)
    used = {site.block for site in parts.sites.values()}
    return replace(parts, blocks=[block for block in blocks if block.name in used])


def _of_factors(
    experts: Mapping[str, Adapter], backbone: nn.Module, owner: Mapping[str, str], coefficient: float
) -> MlpParts:
    """Take low-rank experts apart. A common start φ₀ that is not zero is added once, in the MLPs too."""
    start = next(iter(experts.values())).start
    moved = {n: replace(a, updates=dict(a.task_vector)) if a.start else a for n, a in experts.items()}
    prefix = f"{getattr(backbone, 'base_model_prefix', '')}."
    sites, fixed = dict[str, MlpSite](), dict[str, Update](start)
    for name, updates in expert_sites(moved).items():
        block = owner.get(name, owner.get(name.removeprefix(prefix)))  # as a model with a head names its layers
        given = [update for update in updates if update is not None]
        if block is not None:
            out, inside = given[0].shape
            sites[name] = MlpSite(block, (out, inside), updates)
        elif coefficient:
            total = combine(given, [coefficient] * len(given))
            fixed[name] = total + fixed[name] if name in fixed else total
    return MlpParts((), sites, {name: _factors(update) for name, update in fixed.items()}, {})


def _factors(update: Update) -> LowRank:
    factors = update.factors()
    assert factors is not None
    return LowRank(factors.b.float(), factors.a.float(), factors.scaling)


def _of_weights(
    experts: Mapping[str, Adapter], backbone: nn.Module, owner: Mapping[str, str], coefficient: float
) -> MlpParts:
    """Take experts apart that were fine-tuned whole."""
    every = [adapter.updates for adapter in experts.values()]
    names = dict.fromkeys(name for updates in every for name in updates)
    sites, changes = dict[str, MlpSite](), dict[str, Tensor]()
    for name in names:
        layer, _, parameter = name.rpartition(".")
        if layer not in owner or parameter not in ("weight", "bias"):
            parts = [updates[name].dense().float() for updates in every if name in updates]
            changes[name] = coefficient * torch.stack(parts).sum(0)
        elif layer not in sites:
            sites[layer] = _whole_site(layer, owner[layer], every, backbone)
    return MlpParts((), sites, {}, changes)


def _whole_site(layer: str, block: str, every: Sequence[Mapping[str, Update]], backbone: nn.Module) -> MlpSite:
    turned = type(backbone.get_submodule(layer)).__name__ == "Conv1D"  # its weight is [in, out]
    weights = [updates.get(f"{layer}.weight") for updates in every]
    matrices = [None if w is None else Dense((w.dense().T if turned else w.dense()).float()) for w in weights]
    own = backbone.get_submodule(layer).get_parameter("weight").shape
    shape = (int(own[1]), int(own[0])) if turned else (int(own[0]), int(own[1]))
    biases = [updates.get(f"{layer}.bias") for updates in every]
    given = [None if bias is None else bias.dense().float() for bias in biases]
    return MlpSite(block, shape, matrices, given if any(bias is not None for bias in given) else None)


def sparse(parts: MlpParts, keep: float) -> MlpParts:
    """Keep the largest entries of every change of the MLPs (E-WEMoE, arXiv:2410.21804).

    Of the matrices, `block_network` keeps them one by one, when it makes the network. Biases are pruned here.

    Args:
        parts: of the experts.
        keep: share of the entries of each tensor that is kept, at least one.
    """
    if keep >= 1:
        return parts
    return replace(parts, sites={name: _sparse(site, keep) for name, site in parts.sites.items()})


def _sparse(site: MlpSite, keep: float) -> MlpSite:
    biases = site.biases and [None if one is None else _largest(one, _count(one.numel(), keep)) for one in site.biases]
    return replace(site, biases=biases, kept=_count(site.shape[0] * site.shape[1], keep))


def factored(parts: MlpParts, keep: float, rank: int) -> tuple[MlpParts, float, float]:
    """Keep the largest entries of every low-rank change of the MLPs, and factor what is left, which is of full rank.

    Args:
        parts: of low-rank experts.
        keep: as of `sparse`.
        rank: of every factored matrix.

    Returns:
        the parts; the relative Frobenius error of the pruning, and that of the truncation to the rank.

    Raises:
        FusionError: the experts change biases.
    """
    total = pruned = left = 0.0
    sites = {}
    for name, site in parts.sites.items():
        if site.biases is not None:
            fix = "choose form=sparse"
            raise FusionError("low-rank experts have no biases", got="full", where=name, fix=fix)
        matrices: list[Update | None] = []
        for one in site.matrices:
            if one is None:
                matrices.append(None)
                continue
            kept = Dense(_largest(one.dense().float(), _count(site.shape[0] * site.shape[1], keep)))
            smaller, error = kept.compress(rank)
            matrices.append(smaller)
            total, pruned = total + one.norm() ** 2, pruned + kept.norm() ** 2
            left += (error * kept.norm()) ** 2
        sites[name] = replace(site, matrices=matrices)
    return replace(parts, sites=sites), _share(total - pruned, total), _share(left, pruned)


def _share(part: float, whole: float) -> float:
    """Return a relative error from squares; a difference of squares may be below 0 by rounding."""
    return math.sqrt(max(part, 0.0) / whole) if whole else 0.0


def _count(entries: int, keep: float) -> int:
    return max(1, round(keep * entries))


def _largest(tensor: Tensor, count: int) -> Tensor:
    """Return the tensor with zeros in place of all but its largest entries."""
    chosen = largest(tensor, count)
    return torch.zeros_like(tensor).flatten().index_copy(0, chosen, tensor.flatten()[chosen]).reshape(tensor.shape)


def block_network(
    experts: Sequence[str], parts: MlpParts, gates: Mapping[str, Gate], gate_at: Mapping[str, str]
) -> RoutedNetwork:
    """Return the network of experts and gates; its parameters are copies.

    Args:
        experts: their names.
        parts: of the experts.
        gates: name -> gate.
        gate_at: block -> the name of its gate.
    """
    settings = RoutedSettings(
        experts=list(experts),
        gates={name: gate.settings.model_dump(mode="json") for name, gate in gates.items()},
        sites={name: _site_settings(site, gate_at[site.block]) for name, site in parts.sites.items()},
        fixed={name: FixedSettings(shape=list(u.shape), rank=u.rank) for name, u in parts.fixed.items()},
        changes={name: list(change.shape) for name, change in parts.changes.items()},
    )
    network = RoutedNetwork(settings)
    for name, site in parts.sites.items():
        _fill(network.sites.at(name), site)
    for name, update in parts.fixed.items():
        fill_bank(network.fixed.at(name), [update])
    for name, change in parts.changes.items():
        network.changes.at(name).delta.data.copy_(change)
    for name, gate in gates.items():
        network.gate(name).load_state_dict(gate.state_dict())
    return network.requires_grad_(False)


def _site_settings(site: MlpSite, gate: str) -> SiteSettings:
    factors, shape, bias = site.low_rank, list(site.shape), site.biases is not None
    if site.kept is not None:
        none = [0] * len(site.matrices)
        return SiteSettings(shape=shape, ranks=none, gate=gate, at=site.block, form="sparse", kept=site.kept, bias=bias)
    if factors is None or bias:
        return SiteSettings(
            shape=shape, ranks=[0] * len(site.matrices), gate=gate, at=site.block, form="dense", bias=bias
        )
    ranks = [0 if one is None else one.rank for one in factors]
    return SiteSettings(shape=shape, ranks=ranks, gate=gate, at=site.block)


@torch.no_grad()
def _fill(bank: nn.Module, site: MlpSite) -> None:
    """Copy the experts of a site into its bank; a whole matrix is formed for one expert at a time."""
    if isinstance(bank, Bank):
        fill_bank(bank, [one for one in site.low_rank or () if one is not None])
        return
    assert isinstance(bank, DenseBank | SparseBank)
    for i, matrix in enumerate(site.matrices):
        if isinstance(bank, SparseBank):
            bank.fill(i, torch.zeros(site.shape) if matrix is None else matrix.dense().float())
        elif matrix is not None:
            bank.weight[i] = matrix.dense()
    for i, bias in enumerate(site.biases or ()):
        if bias is not None and bank.bias is not None:
            bank.bias[i] = bias


def pruning_error(network: RoutedNetwork, parts: MlpParts) -> float:
    """Return the relative Frobenius error of what a network with sparse banks has kept of the experts' matrices."""
    total = kept = 0.0
    for name, site in parts.sites.items():
        bank = network.sites.at(name)
        if isinstance(bank, SparseBank):
            total += sum(one.norm() ** 2 for one in site.matrices if one is not None)
            kept += float(bank.values.detach().double().square().sum())
    return _share(total - kept, total)
