"""A start in closed form: layer by layer, outputs nearest to those of every expert, at a rank; no step is trained.

For each adapted layer of the present block, with inputs x_t in expert t and x_m in the merged model so far,

    ΔW* = argmin Σ_t E‖(W₀ + ΔW) x_m − (W₀ + ΔW_t) x_t‖² + ρ ‖ΔW − F‖²

with the fused update F. Its solution is a correction of F by the error that F leaves,

    ΔW* = F + (Σ_t E[e_t x_mᵀ]) (G + ρ 1)⁻¹,   e_t = (W₀ + ΔW_t) x_t − (W₀ + F) x_m,   G = Σ_t E[x_m x_mᵀ],

so that biases need no care: both outputs contain theirs. With x_m in place of x_t it is RegMean (arXiv:2212.09849), and
RegMean++ (arXiv:2508.03121) takes x_m from the merged model. ρ is a fraction of the mean of G's diagonal.

Then ΔW* is cut to a rank with the least error *of outputs*, ‖(ΔW* − ΔW_r)(G + ρ 1)^½‖, which is Eckart and Young's
theorem for ΔW* (G + ρ 1)^½, before the next layers' inputs are computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.polishing.blocks import Passing, within
from tangora.polishing.dual import Dual
from tangora.polishing.student import balanced, is_layer
from tangora.tasks.values import evaluating
from tangora.updates.task_vector import LowRank

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.updates.task_vector import Update

__all__ = ["Cut", "Moments", "closed_form", "corrected", "cut_changes", "cut_for_inputs", "lifted", "linear_sites"]


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer: sums over tasks of means over positions, in float64.

    Attributes:
        gram: ``E[x xᵀ]`` of the merged model's inputs.
        error: ``E[e xᵀ]`` with the error e of the merged model's outputs.
    """

    gram: Float[Tensor, "in in"]
    error: Float[Tensor, "out in"]

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.error + other.error)


@dataclass(frozen=True)
class Cut:
    """An update cut to a rank: its factors, and the squared norms of outputs that were lost, and in all."""

    update: LowRank
    lost: float
    total: float


def corrected(update: Float[Tensor, "out in"], moments: Moments, ridge: float) -> Float[Tensor, "out in"]:
    """Return ``F + E (G + ρ 1)⁻¹`` in float64.

    Args:
        update: F.
        moments: of the layer, with F in place.
        ridge: ρ, as a fraction of the mean of G's diagonal.
    """
    factor = torch.linalg.cholesky(lifted(moments.gram, ridge))
    return update.double() + torch.cholesky_solve(moments.error.T, factor).T


def lifted(gram: Float[Tensor, "in in"], ridge: float) -> Float[Tensor, "in in"]:
    """Return ``G + ρ 1``; never singular: ρ is at least about the rounding of G."""
    mean = float(gram.diagonal().mean())
    least = max(ridge, len(gram) * torch.finfo(torch.float32).eps) * mean or 1.0
    return gram + least * torch.eye(len(gram), dtype=gram.dtype)


def cut_for_inputs(update: Float[Tensor, "out in"], metric: Float[Tensor, "in in"], rank: int) -> Cut:
    """Return the update of at most a rank that is nearest in ``‖· M^½‖``, for a positive definite metric M.

    The left singular vectors U of ``ΔW M^½`` are the eigenvectors of ``ΔW M ΔWᵀ``, and the cut is ``U_r U_rᵀ ΔW``. If
    there are more outputs than inputs, the right ones V of ``ΔW L`` are those of ``Lᵀ ΔWᵀ ΔW L`` with ``M = L Lᵀ``, and
    the cut is ``ΔW L V_r V_rᵀ L⁻¹``.
    """
    wide, kept = update.double(), min(rank, *update.shape)
    if wide.shape[0] <= wide.shape[1]:
        squares, vectors = torch.linalg.eigh(wide @ metric @ wide.T)
        b = vectors.flip(1)[:, :kept]
        a = b.T @ wide
    else:
        root = torch.linalg.cholesky(metric)
        product = wide @ root
        squares, vectors = torch.linalg.eigh(product.T @ product)
        right = vectors.flip(1)[:, :kept]
        b, a = product @ right, torch.linalg.solve_triangular(root.T, right, upper=True).T
    squares = squares.flip(0).clamp(min=0)
    return Cut(LowRank(b, a), float(squares[kept:].sum()), float(squares.sum()))


def linear_sites(block: nn.Module, name: str, sites: Mapping[str, object]) -> dict[str, str]:
    """Return site -> name in the block, of the sites that are layers of a block with a vector as input."""
    prefix = f"{name}."
    inside = {site: site.removeprefix(prefix) for site in sites if site.startswith(prefix)}
    return {site: own for site, own in inside.items() if not isinstance(block.get_submodule(own), nn.Embedding)}


def closed_form(
    dual: Dual, fused: Mapping[str, Update], rank: int | None, ridge: float, done: Callable[[str], None]
) -> tuple[dict[str, LowRank], float]:
    """Return site -> balanced factors of every layer in a block, and the relative error of the cuts, of outputs.

    Args:
        dual: at the first block; at the end behind the last one.
        fused: site -> update of a layer, to start from.
        rank: the largest of a site; None for that of its fused update.
        ridge: see `corrected`.
        done: is called with the name of each block.
    """
    current, lost, total = dict(fused), 0.0, 0.0
    made: dict[str, LowRank] = {}
    with evaluating(dual.base.backbone):
        for index, name in enumerate(dual.blocks.names):
            sites = linear_sites(dual.blocks.block(index), name, fused)
            for group in _groups(dual, index, sites, current):
                for site, moments in _moments(dual, index, group, current).items():
                    update = current[site]
                    dense = update.dense().cpu()
                    metric = lifted(moments.gram, ridge)
                    cut = cut_for_inputs(corrected(dense, moments, ridge), metric, rank or _rank(update))
                    current[site] = made[site] = balanced(site, cut.update)
                    lost, total = lost + cut.lost, total + cut.total
            _advance(dual, index, current)
            done(name)
    return made, math.sqrt(lost / total) if total > 0 else 0.0


def _rank(update: Update) -> int:
    factors = update.factors()
    return min(update.shape) if factors is None else max(1, factors.rank)


def _weights(dual: Dual, index: int, current: Mapping[str, Update]) -> dict[str, Tensor]:
    return dual.blocks.weights(index, within(Adapter(dict(current)), dual.blocks.names[index]))


class _ReachedError(Exception):
    """Every layer of a group has been called: the rest of the block need not be computed."""


def _observed(
    dual: Dual, index: int, passing: Passing, weights: Mapping[str, Tensor], sites: Mapping[str, str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return site -> input and output of its layer, in a pass through the block that ends with the last of them."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(site: str, x: Tensor, y: Tensor) -> None:
        seen[site] = (x, y)
        if len(seen) == len(sites):
            raise _ReachedError

    with dual.blocks.tapped(index, sites, keep), torch.no_grad(), contextlib.suppress(_ReachedError):
        dual.blocks.run(index, passing, weights)
    return seen


def _groups(dual: Dual, index: int, sites: Mapping[str, str], current: Mapping[str, Update]) -> list[dict[str, str]]:
    """Return the layers of a block in groups that have one input, in the order of their calls.

    Layers that are not called, such as experts of a mixture that get no token, are in no group.
    """
    if not sites:
        return []
    seen = _observed(dual, index, dual.streams[0].merged[0], _weights(dual, index, current), sites)
    groups: dict[int, dict[str, str]] = {}
    for site, (x, _) in seen.items():
        groups.setdefault(id(x), {})[site] = sites[site]
    return list(groups.values())


def _moments(dual: Dual, index: int, group: Mapping[str, str], current: Mapping[str, Update]) -> dict[str, Moments]:
    """Return the moments of the layers of a group, with the experts' weights loaded one after the other."""
    merged, totals = _weights(dual, index, current), dict[str, Moments]()
    for stream in dual.streams:
        theirs_of, own, count = dual.expert_weights(index, stream), dict[str, Moments](), 0
        for expert, ours in stream.batches():
            theirs = _observed(dual, index, expert, theirs_of, group)
            mine = _observed(dual, index, ours, merged, group)
            gram: Tensor | None = None
            for site, (x, y) in mine.items():
                inputs = ours.counted(x).float()  # computing in half precision gives them in it
                gram = (inputs.T @ inputs).cpu().double() if gram is None else gram
                error = ours.counted(theirs[site][1].float() - y.float()).T @ inputs
                one = Moments(gram, error.cpu().double())
                own[site] = own[site] + one if site in own else one
            count += len(inputs)
        for site, sums in own.items():
            mean = Moments(sums.gram / count, sums.error / count)
            totals[site] = totals[site] + mean if site in totals else mean
    return totals


def _advance(dual: Dual, index: int, current: Mapping[str, Update]) -> None:
    for stream in dual.streams:
        dual.advance_expert(index, stream, dual.expert_weights(index, stream))
    dual.advance_merged(index, _weights(dual, index, current))


def cut_changes(
    dual: Dual, index: int, changes: Mapping[str, Tensor], weights: Mapping[str, Tensor], rank: int
) -> dict[str, Cut]:
    """Return site -> the change of a layer of a block, cut to a rank for its inputs in the merged model.

    Args:
        dual: at the block.
        index: of the block.
        changes: parameter -> change of the base's value, by names in the block.
        weights: of the block in the merged model.
        rank: the largest of a site.
    """
    name, block = dual.blocks.names[index], dual.blocks.block(index)
    layers = {f"{name}.{own}": own for parameter in changes if (own := parameter.removesuffix(".weight")) != parameter}
    sites = {site: own for site, own in linear_sites(block, name, layers).items() if is_layer(block.get_submodule(own))}
    made = {}
    for site, gram in _grams(dual, index, sites, weights).items():
        change = changes[f"{sites[site]}.weight"]
        turned = change.T if type(block.get_submodule(sites[site])).__name__ == "Conv1D" else change
        made[site] = cut_for_inputs(turned, lifted(gram, 0.0), rank)
    return made


def _grams(dual: Dual, index: int, sites: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    for stream in dual.streams:
        own: dict[str, Tensor] = {}
        for passing in stream.merged:
            for site, (x, _) in _observed(dual, index, passing, weights, sites).items():
                inputs = passing.counted(x).float()
                own[site] = own.get(site, 0) + (inputs.T @ inputs).cpu().double()
        for site, gram in own.items():
            totals[site] = totals.get(site, 0) + gram
    return totals
