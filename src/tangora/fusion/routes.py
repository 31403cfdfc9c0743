"""Choose how to compute a fusion: all routes give the same result, and each saves memory or time if it applies."""

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
    """Chooses the route for one set of adapters, and keeps the last result that a grid over λ can reuse."""

    _unit: tuple[str, TaskVector] | None = None  # the last method and parameters, and its result for λ = 1

    def fused(self, engine: Engine, computation: Computation, rank: int | None) -> tuple[TaskVector, dict[str, float]]:
        """Apply the method to the coordinates; return the result, and the errors by site if it is truncated to a rank.

        There are five routes. The first that applies is taken; they are in order of the memory that they need::

            truncated, linear  Σ cₜ Bₜ Aₜ of one site, truncated at once   one site's factors
            truncated, other   f(ΔWₜ; λₜ) of one site, truncated at once   one site's dense tensors
            linear             Σ cₜ Bₜ Aₜ                                  all factors
            one λ > 0          λ · f(ΔWₜ; 1), from the last call           all sites dense
            any other          f(ΔWₜ; λₜ)                                  all sites dense

        Truncation comes first, because it avoids holding all sites untruncated; a rank is only passed if nothing else
        needs them. Linear comes before one λ, since that route would hold dense tensors instead of factors. One λ saves
        no memory, but the whole grid over λ costs a single call of the method.
        """
        if rank is not None:
            return _truncated(engine, computation, rank)
        if computation.method.linear:
            return engine.linear(computation), {}
        scale = common_scale(computation.weights) if computation.method.homogeneous else None
        if scale is None:
            return TaskVector(engine.dense(computation, _itself)), {}
        return self._at_one(engine, computation) * scale, {}

    def _at_one(self, engine: Engine, computation: Computation) -> TaskVector:
        """Return the result for λ = 1, from the last call if method and parameters are the same."""
        key = json.dumps([computation.method.name, computation.parameters], sort_keys=True, default=repr)
        if self._unit is None or self._unit[0] != key:
            self._unit = None  # frees the last result before the next is computed
            ones = replace(computation, weights=[1.0] * len(engine.coordinates.vectors))
            self._unit = (key, TaskVector(engine.dense(ones, _itself)))
        return self._unit[1]


def _truncated(engine: Engine, computation: Computation, rank: int) -> tuple[TaskVector, dict[str, float]]:
    if computation.method.linear:
        prepare(update for vector in engine.coordinates.vectors for update in vector.values())
        results = engine.linear_truncated(computation, rank)
    else:
        prepare()
        results = engine.dense(computation, lambda update: update.compress(rank))
    return TaskVector({n: u for n, (u, _) in results.items()}), {n: error for n, (_, error) in results.items()}


def _itself(update: Update) -> Update:
    return update
