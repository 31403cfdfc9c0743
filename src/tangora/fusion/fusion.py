"""Several adapters of one base model into one: φ₀ + F({φₜ − φ₀}; coefficients).

Linear methods never see a dense matrix: applied to the identity they yield one coefficient per task, and the sum
is formed on the factors. Other methods see one site at a time, or all of them as one vector where they must.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from tangora.adapters.adapter import Adapter, load
from tangora.adapters.formats.lora.based import open_base
from tangora.adapters.metadata import FusedInfo, Parent
from tangora.errors import FusionError
from tangora.fusion.engine import Engine
from tangora.fusion.heads import Heads, carried_records, check_heads, fuse_whole
from tangora.fusion.lineage import check, check_belongs, check_factors, check_low_rank, cut_to, inherit
from tangora.fusion.spaces import Bases, Space, coordinates, cores, from_cores, site_of, updates_from
from tangora.fusion.statistics import Known, StatisticsLike, match, opened, refuse_superfluous
from tangora.fusion.weights import Table, Weights, common_scale, tabulate
from tangora.methods import Method, get
from tangora.support.threads import in_threads
from tangora.support.validation import did_you_mean
from tangora.updates.task_vector import TaskVector, Update
from tangora.updates.truncation import prepare

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
    space: Space = "delta",
    rank: int | None = None,
    seed: int = 0,
    same_base: bool = False,
    statistics: Sequence[StatisticsLike] | None = None,
    base: str | os.PathLike[str] | None = None,
    heads: Heads | None = None,
    **parameters: Any,
) -> Adapter:
    """Fuse adapters of one base model into one adapter; the base model is not needed.

    .. math:: \\phi = \\phi_0 + F(\\{\\phi_t - \\phi_0\\}; \\lambda)

    (arXiv:2310.04742, section 3.) Linear methods are exact: adapters that share A₀ stay at their rank, otherwise the
    ranks add up, or are cut to ``rank`` by the best approximation, whose relative error is in ``metadata.fused``.

    Args:
        adapters: adapters, or their folders. A single one is allowed; a negative weight makes the model forget it.
        method: see ``tangora.methods()``.
        weights: one λ for all, one per adapter, or site -> one per adapter; the method's default where not given.
        space: ``delta`` fuses the changes of the weights, independent of how they are factored; ``factors`` fuses A
            and B by themselves, as the paper does for LoRA, with the cross terms that this brings; ``core`` fuses
            the changes in bases that all adapters share (arXiv:2509.17786), small matrices whatever the width.
        rank: the largest rank of the result at a site.
        seed: of random methods; with the adapters' contents it decides every draw.
        same_base: the bases are the same weights although their names or fingerprints differ.
        statistics: of every adapter, in any order, for a method that needs them: files of ``tangora statistics``, or
            what `tangora.collect_statistics` returned.
        base: the base's folder, where updates depend on its weights (DoRA, PiSSA, OLoRA, biases saved whole).
        heads: what becomes of ``modules_to_save`` that differ: ``keep`` one per task in ``heads/``, to be loaded by
            choice, or ``fuse`` them by name into their mean, weighted by λ. Nothing is dropped: without it they are
            refused.
        parameters: the method's own, such as ``density=0.2``.

    Raises:
        FusionError: different bases, kinds or widths; weights of the wrong count or not finite; an unknown method or
            parameter, or one out of range; ``factors`` without one common φ₀, rank and scaling; statistics that are
            missing, of another adapter, or not needed; heads that differ.
        AdapterError: a folder does not hold an adapter that can be read.

    >>> import torch
    >>> from tangora.updates.task_vector import LowRank
    >>> one = Adapter({"layer": LowRank(torch.ones(2, 1), torch.ones(1, 2))})
    >>> fuse([one, one], weights=[0.5, -0.25]).updates["layer"].dense()
    tensor([[0.2500, 0.2500],
            [0.2500, 0.2500]])
    """
    fusion = Fusion(adapters, space, seed=seed, same_base=same_base, statistics=statistics, base=base, heads=heads)
    refuse_superfluous(fusion.statistics, get(method), fusion.adapters, fusion.names)
    return fusion.merge(method, weights, parameters, rank)


class Fusion:
    """Adapters that were checked once, to be fused many times: for grids, searches and subsets.

    Args:
        adapters: adapters, or their folders.
        space: ``delta``, ``factors`` or ``core``.
        seed: of random methods.
        same_base, base, heads: see `fuse`.
        names: for errors and for ``metadata.fused.parents``; the task's or the folder's name where not given.
        statistics: see `fuse`.

    Raises:
        FusionError: see `fuse`.
    """

    def __init__(
        self,
        adapters: Sequence[AdapterLike],
        space: Space = "delta",
        *,
        seed: int = 0,
        same_base: bool = False,
        names: Sequence[str] | None = None,
        statistics: Sequence[StatisticsLike] | None = None,
        base: str | os.PathLike[str] | Checkpoint | None = None,
        heads: Heads | None = None,
    ) -> None:
        if isinstance(adapters, str | os.PathLike | Adapter):
            raise FusionError("adapters must be a list", got=type(adapters).__name__, where="fuse.adapters")
        if space not in get_args(Space):
            fix = did_you_mean(str(space), list(get_args(Space)))
            raise FusionError("no such space", got=space, where="fuse.space", fix=fix)
        check_heads(heads)
        origin = open_base(base)
        self.adapters = [a if isinstance(a, Adapter) else load(a, origin, lazily=True) for a in adapters]
        self.names = list(names) if names is not None else [_name(i, *x) for i, x in _pairs(adapters, self.adapters)]
        if len(self.names) != len(self.adapters):
            raise FusionError("one name per adapter", got=len(self.names), where="fuse.names")
        self.space: Space = space
        self.seed, self.heads = seed, heads
        self.statistics = [opened(one) for one in statistics or ()]
        check(self.adapters, self.names, same_base)
        if origin is not None and not same_base:
            check_belongs(self.adapters, self.names, origin)
        if space == "factors":
            check_factors(self.adapters, self.names)
        if space == "core":
            check_low_rank(self.adapters, self.names)
        vectors = [coordinates(adapter, space) for adapter in self.adapters]
        self._vectors: dict[Space, list[TaskVector]] = (
            {space: vectors} if space != "core" else {"core": vectors, "delta": vectors}
        )
        self._unit: tuple[str, TaskVector] | None = None
        self._cores: tuple[list[TaskVector], Bases] | None = None

    def subset(self, indices: Sequence[int]) -> Fusion:
        """The same with some of the adapters, in the order given; nothing is checked again."""
        if not indices:
            raise FusionError("nothing to fuse", got=0, where="fuse.adapters", fix="give at least one adapter")
        part = object.__new__(type(self))
        part.adapters = [self.adapters[i] for i in indices]
        part.names = [self.names[i] for i in indices]
        part.space, part.seed, part.heads, part._unit, part._cores = self.space, self.seed, self.heads, None, None
        part.statistics = self.statistics
        part._vectors = {space: [vectors[i] for i in indices] for space, vectors in self._vectors.items()}
        return part

    def merge(
        self,
        method: str = "task_arithmetic",
        weights: Weights | None = None,
        parameters: Mapping[str, Any] | None = None,
        rank: int | None = None,
    ) -> Adapter:
        """One fused adapter; arguments and errors as of `fuse`."""
        self._check_rank(rank)
        chosen = get(method)
        given = {key: _plain(value) for key, value in (parameters or {}).items()}
        chosen.check(given)
        chosen.check_count(len(self.adapters))
        sites = {site for adapter in self.adapters for site in adapter.updates}
        table = tabulate(chosen.default_weight if weights is None else weights, len(self.adapters), sites)
        whole, kept = self.whole(chosen, table, given)
        space = self._space_for(chosen)
        known = match(self.statistics, chosen, space, self.adapters, self.names)
        cut = rank if space == "delta" and self._own_factors(chosen) else None
        fused, errors = self._fused(chosen, table, given, space, cut, known)
        info = FusedInfo(
            method=chosen.name,
            space=self.space,
            parents=[
                Parent(name=name, task=adapter.metadata.task, fingerprint=adapter.fingerprint)
                for name, adapter in zip(self.names, self.adapters, strict=True)
            ],
            weights=table,
            parameters={**chosen.parameters, **given},
            seed=self.seed,
            statistics=known.told,
            heads=self.heads if kept or any(adapter.whole for adapter in self.adapters) else None,
        )
        if space == "core":
            fused = from_cores(fused, self._core_vectors()[1], self.adapters[0].task_vector)
        made = inherit(self.adapters, updates_from(fused, space, self.adapters[0]), info)
        made = replace(made, whole=whole, heads=kept, records=carried_records(self.adapters))
        return made if rank is None else cut_to(made, rank, errors)

    def whole(
        self, method: Method, table: Table, parameters: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Mapping[str, Tensor]]]:
        """What becomes of what the adapters saved whole: values that replace the base's, and heads kept per task."""
        coefficients = method.coefficients(table, parameters) if method.linear and isinstance(table, list) else None
        return fuse_whole(self.adapters, self.names, table, coefficients, self.heads)

    def _space_for(self, method: Method) -> Space:
        """Where a linear method does the same in another space for less.

        Cores lose nothing, so ``core`` is ``delta``; linearized adapters of one φ₀ are linear in their factors, and
        stay at rank 2r there.
        """
        if self.space == "factors" or not method.linear:
            return self.space
        if not self.adapters[0].start or any(adapter.metadata.linearize == "none" for adapter in self.adapters):
            return "delta"
        if "factors" not in self._vectors:
            try:
                check_factors(self.adapters, self.names)
            except FusionError:
                return "delta"
            self._vectors["factors"] = [coordinates(adapter, "factors") for adapter in self.adapters]
        return "factors"

    def _own_factors(self, method: Method) -> bool:
        """Whether each site can be cut as soon as it is made: its factors are not those of a φ₀ that is known."""
        dense = any(u.factors() is None for adapter in self.adapters for u in adapter.updates.values())
        return not self.adapters[0].start and (not method.linear or dense or self.adapters[0].initial is None)

    def _core_vectors(self) -> tuple[list[TaskVector], Bases]:
        """Cores in the bases of these adapters; a subset has bases of its own."""
        if self._cores is None:
            self._cores = cores(self._vectors["core"])
        return self._cores

    def _check_rank(self, rank: int | None) -> None:
        if rank is None:
            return
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise FusionError("rank must be a whole number of at least 1", got=rank, where="fuse.rank")
        if self.adapters[0].metadata.kind == "full":
            fix = "leave the rank out: a full adapter has no factors"
            raise FusionError("rank is for low-rank adapters", got=rank, where="fuse.rank", fix=fix)

    def _fused(
        self,
        method: Method,
        table: Table,
        parameters: Mapping[str, Any],
        space: Space,
        rank: int | None,
        known: Known,
    ) -> tuple[TaskVector, dict[str, float]]:
        """What the method makes of the coordinates; with a rank, cut to it while a site is at hand, and the errors."""
        prints = in_threads(lambda adapter: adapter.fingerprint, self.adapters) if method.random else []
        vectors = self._core_vectors()[0] if space == "core" else self._vectors[space]
        engine = Engine(vectors, partial(site_of, space=space), self.seed, prints, known.of)
        if method.linear and rank is None:
            return engine.linear(method, table, parameters), {}
        if rank is not None:
            prepare()
            cut: dict[str, tuple[Update, float]] = (
                engine.linear_cut(method, table, parameters, rank)
                if method.linear
                else engine.dense(method, table, parameters, lambda update: update.compress(rank))
            )
            return TaskVector({n: u for n, (u, _) in cut.items()}), {n: error for n, (_, error) in cut.items()}
        scale = common_scale(table) if method.homogeneous else None
        if scale is None:
            return TaskVector(engine.dense(method, table, parameters, _itself)), {}
        key = json.dumps([method.name, parameters], sort_keys=True, default=repr)
        if self._unit is None or self._unit[0] != key:
            self._unit = None  # frees the last one before the next is made
            unit = engine.dense(method, [1.0] * len(self.adapters), parameters, _itself)
            self._unit = (key, TaskVector(unit))
        return self._unit[1] * scale if scale != 1.0 else self._unit[1], {}


def _plain(value: Any) -> Any:
    """NumPy's numbers are not JSON's."""
    return value.item() if hasattr(value, "item") else value


def _pairs(given: Sequence[AdapterLike], adapters: Sequence[Adapter]) -> list[tuple[int, tuple[AdapterLike, Adapter]]]:
    return list(enumerate(zip(given, adapters, strict=True)))


def _name(index: int, given: AdapterLike, adapter: Adapter) -> str:
    if not isinstance(given, Adapter):
        return os.path.basename(os.path.normpath(os.fspath(given)))
    return adapter.metadata.task or f"adapter {index + 1}"


def _itself(update: Update) -> Update:
    return update
