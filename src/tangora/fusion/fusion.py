"""Fuse adapters of one base model: φ₀ + F({φₜ − φ₀}; coefficients).

A linear method needs no dense matrix: applied to the identity it gives one coefficient per task, and the sum is formed
on the factors. Other methods get one site at a time, or all sites as one vector if they need the whole model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from tangora.adapters.adapter import Adapter, load
from tangora.adapters.metadata import FusedInfo, Parent
from tangora.errors import ArgumentError, FusionError
from tangora.fusion.computation import Computation
from tangora.fusion.contract import Coordinates, space_of
from tangora.fusion.cutting import ERROR, Rank, check_rank, cut_to
from tangora.fusion.engine import Engine
from tangora.fusion.heads import Heads, carried_records, check_heads, fuse_whole
from tangora.fusion.lineage import check, check_belongs, inherit
from tangora.fusion.naming import with_common_names
from tangora.fusion.routed import refuse_of_methods, route_settings, routed
from tangora.fusion.routes import Routes
from tangora.fusion.saved import base_values, changes, moved, sum_of_changes
from tangora.fusion.statistics import MethodStatistics, StatisticsLike, match, opened, refuse_superfluous
from tangora.fusion.weights import Weights, WeightTable, tabulate
from tangora.methods import Method, get
from tangora.storage.checkpoint import open_base
from tangora.storage.hub import located
from tangora.support.names import names_of, numbered
from tangora.support.seams import ROUTERS

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.storage.checkpoint import Checkpoint

__all__ = ["Fusion", "Weights", "fuse"]

AdapterLike: TypeAlias = "Adapter | str | os.PathLike[str]"


def fuse(
    adapters: Sequence[AdapterLike],
    method: str = "task_arithmetic",
    weights: Weights | None = None,
    *,
    space: str = "delta",
    rank: Rank = None,
    error: float = ERROR,
    seed: int = 0,
    same_base: bool = False,
    statistics: Sequence[StatisticsLike] | None = None,
    base: str | os.PathLike[str] | None = None,
    heads: Heads | None = None,
    **parameters: Any,
) -> Adapter:
    """Fuse adapters of one base model into one adapter; the base model is not needed.

    .. math:: \\phi = \\phi_0 + F(\\{\\phi_t - \\phi_0\\}; \\lambda)

    (arXiv:2310.04742, section 3.) Linear methods are exact: adapters that share A₀ keep their rank, otherwise the ranks
    add up. With ``rank``, the result is truncated by the best approximation; ``metadata.fused`` has its relative error.

    Args:
        adapters: adapters, their folders, or their names on the Hub. A single one is allowed; a negative weight makes
            the model forget it.
        method: see ``tangora.methods()``; or a router, such as ``smile``, for a routed adapter (`tangora.route`).
        weights: one λ for all, one per adapter, or site -> one per adapter; the method's default if None.
        space: ``delta`` fuses the changes of the weights, independent of how they are factored; ``factors`` fuses A
            and B separately, as the paper does for LoRA, which adds cross terms; ``core`` fuses the changes in bases
            that all adapters share (arXiv:2509.17786), as small matrices for any width; or another package's space.
        rank: the maximum rank of the result at a site; ``auto`` for the least that leaves an error under ``error``.
        error: the relative error (Frobenius) of a site, with ``auto``.
        seed: of random methods; with the adapters' contents it decides every draw.
        same_base: treat the bases as the same weights although their names or fingerprints differ.
        statistics: of every adapter, in any order, for a method that needs them: files of ``tangora statistics``, or
            results of `tangora.collect_statistics`.
        base: the base's folder or name on the Hub, if updates depend on its weights (DoRA, PiSSA, OLoRA, biases saved
            whole), or to weight parameters of the base that are saved whole as changes of it.
        heads: how to treat ``modules_to_save`` that differ: ``keep`` one file per task in ``heads/``, or ``fuse`` them
            by name into their mean, weighted by λ. They are refused if it is None.
        parameters: the method's own, such as ``density=0.2``, or the router's settings.

    Raises:
        FusionError: the adapters cannot be fused: their bases, kinds or widths differ; ``factors`` without one common
            φ₀, rank and scaling; statistics are missing or of another adapter; heads differ.
        ArgumentError: the number of weights is wrong, or one is not finite; the method does not have a parameter, or it
            is out of range; the rank is invalid; the method needs no statistics.
        PluginError: an unknown method or space; the message contains the nearest name.
        AdapterError: a folder does not contain a readable adapter.

    >>> import torch
    >>> from tangora.updates.task_vector import LowRank
    >>> one = Adapter({"layer": LowRank(torch.ones(2, 1), torch.ones(1, 2))})
    >>> fuse([one, one], weights=[0.5, -0.25]).updates["layer"].dense()
    tensor([[0.2500, 0.2500],
            [0.2500, 0.2500]])
    """
    if method in ROUTERS:
        refuse_of_methods(method, weights=weights, rank=rank, space=space, statistics=statistics)
        chosen = route_settings(method, parameters, where="fuse")
        return routed(Fusion(adapters, seed=seed, same_base=same_base, base=base, heads=heads), chosen)
    fusion = Fusion(adapters, space, seed=seed, same_base=same_base, statistics=statistics, base=base, heads=heads)
    refuse_superfluous(fusion.statistics, get(method), fusion.adapters, fusion.names)
    return fusion.merge(method, weights, parameters, rank, error)


class Fusion:
    """Adapters that are checked once and fused many times: for grids, searches and subsets.

    Args:
        adapters: adapters, or their folders.
        space: see `fuse`.
        seed: of random methods.
        same_base, base, heads: see `fuse`.
        names: for errors and for ``metadata.fused.parents``; the task's or the folder's name if None.
        statistics: see `fuse`.

    Raises:
        ArgumentError, FusionError, PluginError, AdapterError: see `fuse`.
    """

    def __init__(
        self,
        adapters: Sequence[AdapterLike],
        space: str = "delta",
        *,
        seed: int = 0,
        same_base: bool = False,
        names: Sequence[str] | None = None,
        statistics: Sequence[StatisticsLike] | None = None,
        base: str | os.PathLike[str] | Checkpoint | None = None,
        heads: Heads | None = None,
    ) -> None:
        if isinstance(adapters, str | os.PathLike | Adapter):
            raise ArgumentError("adapters must be a list", got=type(adapters).__name__, where="fuse.adapters")
        chosen = space_of(space)
        check_heads(heads)
        origin = open_base(base)
        adapters = [one if isinstance(one, Adapter) else located(one, "adapter") for one in adapters]
        self.adapters = [a if isinstance(a, Adapter) else load(a, origin, lazily=True) for a in adapters]
        self.names = list(names) if names is not None else _names(adapters, self.adapters)
        if len(self.names) != len(self.adapters):
            raise ArgumentError("one name per adapter", got=len(self.names), where="fuse.names")
        self.space, self.seed, self.heads, self.base = space, seed, heads, origin
        self.statistics = [opened(one) for one in statistics or ()]
        self.adapters = with_common_names(self.adapters, self.names, origin)
        check(self.adapters, self.names, same_base)
        if origin is not None and not same_base:
            check_belongs(self.adapters, self.names, origin)
        chosen.check(self.adapters, self.names)
        self._coordinates: dict[str, Coordinates] = {}  # by space, made on first use
        self._routes = Routes()

    def __repr__(self) -> str:
        return f"Fusion({', '.join(self.names)}; space {self.space})"

    def subset(self, indices: Sequence[int]) -> Fusion:
        """Return the fusion of some of the adapters, in the given order; they are not checked again.

        Raises:
            ArgumentError: there are none.
        """
        if not indices:
            raise ArgumentError("nothing to fuse", got=0, where="fuse.adapters", fix="give at least one adapter")
        part = copy(self)
        part.adapters = [self.adapters[i] for i in indices]
        part.names = [self.names[i] for i in indices]
        part._coordinates = {name: c.subset(indices) for name, c in self._coordinates.items() if c.separate}
        part._routes = Routes()
        return part

    def merge(
        self,
        method: str = "task_arithmetic",
        weights: Weights | None = None,
        parameters: Mapping[str, Any] | None = None,
        rank: Rank = None,
        error: float = ERROR,
    ) -> Adapter:
        """Fuse the adapters into one; arguments and errors are those of `fuse`."""
        check_rank(rank, error, self.adapters[0])
        chosen = get(method)
        given = {key: _plain(value) for key, value in (parameters or {}).items()}
        chosen.check(given)
        chosen.check_count(len(self.adapters))
        sites = {site for adapter in self.adapters for site in adapter.updates}
        table = tabulate(chosen.default_weight if weights is None else weights, len(self.adapters), sites)
        whole, kept = self.whole(chosen, table, given)
        space = self._space_for(chosen)
        statistics = match(self.statistics, chosen, space, self.adapters, self.names)
        prints = [adapter.fingerprint for adapter in self.adapters] if chosen.random else []
        computation = Computation(chosen, table, given, self.seed, prints)
        at_once = rank if rank != "auto" and space_of(space).plain and self._can_truncate_sites(chosen) else None
        coordinates = self._coordinates_in(space)
        fused, errors = self._routes.fused(Engine(coordinates, statistics.of), computation, at_once)
        info = self._info(computation, statistics, bool(kept))
        adapter = inherit(self.adapters, coordinates.back(fused), info)
        adapter = replace(adapter, whole=whole, heads=kept, records=carried_records(self.adapters))
        return cut_to(adapter, rank, error, errors)

    def whole(
        self, method: Method, table: WeightTable, parameters: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Mapping[str, Tensor]]]:
        """Fuse the parameters that the adapters saved whole; return values that replace the base's, and kept heads."""
        coefficients = method.coefficients(table, parameters) if method.linear and isinstance(table, list) else None
        weighted: dict[str, Tensor] = {}
        rest = self.adapters
        if self.base is not None and isinstance(table, list) and method.statistics is None:
            values = base_values(self.base, self.adapters, self.heads)
            rest = [replace(a, whole={n: v for n, v in a.whole.items() if n not in values}) for a in self.adapters]
            if coefficients is not None:
                weighted = sum_of_changes(values, self.adapters, coefficients)
            elif values:
                fusion = Fusion(changes(values, self.adapters), seed=self.seed, names=self.names)
                weighted = moved(values, fusion.merge(method.name, table, parameters))
        whole, kept = fuse_whole(rest, self.names, table, coefficients, self.heads)
        return whole | weighted, kept

    def is_linear(self) -> bool:
        """Return whether a linear method gives, in this space, the weighted sum of the adapters' changes of weights."""
        return space_of(self.space).is_linear(self.adapters)

    def _space_for(self, method: Method) -> str:
        """Return the cheapest space in which the method gives the same result; only a linear method has a choice.

        A sum needs no cores: in ``delta`` it is formed on the factors. If s·B₀A₀ is not zero, however, every change of
        a weight includes −s·B₀A₀, in further columns of its factors, and the ranks add up. Linearized adapters of one
        φ₀ are then better summed in ``factors``, where the result has only twice the rank of φ₀.
        """
        here = space_of(self.space)
        if not method.linear or not here.intrinsic or not here.is_linear(self.adapters):
            return self.space
        factors = space_of("factors")
        if not self.adapters[0].start or not factors.is_linear(self.adapters):
            return "delta"
        if "factors" not in self._coordinates:
            try:
                factors.check(self.adapters, self.names)
            except FusionError:
                return "delta"
        return "factors"

    def _coordinates_in(self, space: str) -> Coordinates:
        if space not in self._coordinates:
            self._coordinates[space] = space_of(space).coordinates(self.adapters)
        return self._coordinates[space]

    def _can_truncate_sites(self, method: Method) -> bool:
        """Return whether to truncate each site as soon as it is fused.

        Not if s·B₀A₀ is still to be added to it, nor if a linear method may keep the factors of a known φ₀: then the
        ranks may be small enough without truncation, and the result keeps φ₀.
        """
        dense = any(u.factors() is None for adapter in self.adapters for u in adapter.updates.values())
        return not self.adapters[0].start and (not method.linear or dense or self.adapters[0].initial is None)

    def _info(self, computation: Computation, statistics: MethodStatistics, kept: bool) -> FusedInfo:
        """Return how the fused adapter was made, for its metadata."""
        return FusedInfo(
            method=computation.method.name,
            space=self.space,
            parents=[
                Parent(name=name, task=adapter.metadata.task, fingerprint=adapter.fingerprint, source=adapter.source)
                for name, adapter in zip(self.names, self.adapters, strict=True)
            ],
            weights=computation.weights,
            parameters={**computation.method.parameters, **computation.parameters},
            seed=self.seed,
            statistics=statistics.to_dicts(),
            heads=self.heads if kept or any(adapter.whole for adapter in self.adapters) else None,
        )


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's, which JSON needs."""
    return value.item() if hasattr(value, "item") else value


def _names(given: Sequence[AdapterLike], adapters: Sequence[Adapter]) -> list[str]:
    """Return a name for each adapter, different from the others': its folder's, or its task."""
    folders = iter(names_of([one for one in given if not isinstance(one, Adapter)]))
    tasks = (a.metadata.task or f"adapter {i + 1}" for i, a in enumerate(adapters))
    return numbered([t if isinstance(g, Adapter) else next(folders) for g, t in zip(given, tasks, strict=True)])
