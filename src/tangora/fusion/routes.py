"""The ways to compute a fusion; all of them give the same numbers, and each saves memory or time where it applies."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from tangora.fusion.computation import Computation
from tangora.fusion.engine import Engine
from tangora.fusion.weights import common_scale
from tangora.updates.task_vector import TaskVector, Update
from tangora.updates.truncation import prepare

__all__ = ["Routes"]


@dataclass
class Routes:
    """The choice of a route, with what is remembered for the next one: of one set of adapters."""

    _unit: tuple[str, TaskVector] | None = None  # the last method and parameters, and its result for λ = 1

    def fused(self, engine: Engine, computation: Computation, rank: int | None) -> tuple[TaskVector, dict[str, float]]:
        """Return what the method makes of the coordinates; if cut to a rank, with the errors by site.

        There are five routes. Each is tried if it applies, before those that need more memory::

            cut, linear        Σ cₜ Bₜ Aₜ of one site, cut at once      a site's factors in memory
            cut, other         f(ΔWₜ; λₜ) of one site, cut at once      a site's dense tensors
            linear             Σ cₜ Bₜ Aₜ                               all factors
            one λ > 0          λ · f(ΔWₜ; 1), from the last call        all sites dense
            any other          f(ΔWₜ; λₜ)                               all sites dense

        A cut comes first, because the uncut results of all sites are what it saves; it is asked for only if nothing
        else needs them. Linear comes before the scale, which would hold dense what a linear method keeps in factors.
        The scale saves no memory, but a grid over λ costs one call.
        """
        if rank is not None:
            return _cut(engine, computation, rank)
        if computation.method.linear:
            return engine.linear(computation), {}
        scale = common_scale(computation.weights) if computation.method.homogeneous else None
        if scale is None:
            return TaskVector(engine.dense(computation, _itself)), {}
        return self._unit_of(engine, computation) * scale, {}

    def _unit_of(self, engine: Engine, computation: Computation) -> TaskVector:
        """The result for weights of one, kept until another method or other parameters come."""
        key = json.dumps([computation.method.name, computation.parameters], sort_keys=True, default=repr)
        if self._unit is None or self._unit[0] != key:
            self._unit = None  # frees the last one before the next is made
            ones = replace(computation, weights=[1.0] * len(engine.coordinates.vectors))
            self._unit = (key, TaskVector(engine.dense(ones, _itself)))
        return self._unit[1]


def _cut(engine: Engine, computation: Computation, rank: int) -> tuple[TaskVector, dict[str, float]]:
    prepare()
    if computation.method.linear:
        cut = engine.linear_cut(computation, rank)
    else:
        cut = engine.dense(computation, lambda update: update.compress(rank))
    return TaskVector({n: u for n, (u, _) in cut.items()}), {n: error for n, (_, error) in cut.items()}


def _itself(update: Update) -> Update:
    return update
