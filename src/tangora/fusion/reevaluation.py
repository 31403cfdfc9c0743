"""Evaluate a non-linear fusion again at some sites, in float64 on dense matrices, and compare it with peft's updates.

    parents -> dense updates of a site, in float64 -> the method -> E;    the files -> peft -> P;    ‖P − E‖ / ‖E‖

This uses neither the engine nor truncation. If the result was truncated, the difference must be the recorded error, and
that must be the smallest possible at its rank (Eckart-Young). At most four sites are taken, in a random order seeded by
their names, as long as all tasks' updates have no more than 2²⁴ entries.

Rounding may move an entry across a threshold, which matters if few entries are kept: with KnOTS on small sites, one
entry is 2 % of the norm. So a difference of up to 25 % is accepted if the method in float32 gives what the files have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.adapters.comparison import Loaded, relative
from tangora.adapters.initial import seed_of
from tangora.adapters.metadata import FusedInfo
from tangora.errors import AdapterError
from tangora.fusion.computation import Computation
from tangora.fusion.contract import Coordinates, space_of
from tangora.fusion.uniforms import drawn
from tangora.methods import Method, get
from tangora.support.threads import in_threads
from tangora.updates.task_vector import Dense, TaskVector

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["reevaluate"]

TOLERANCE, COARSE = 1e-2, 0.25  # rounding may move an entry across a threshold
_SITES, _NUMBERS = 4, 2**24
_LARGEST_SVD = 768  # the shorter side of the largest matrix to compute singular values of


def reevaluate(info: FusedInfo, parents: Sequence[Adapter], read: Loaded) -> tuple[int, float | None]:
    """Return the number of sites and their largest difference; no sites if something is not known, or too large.

    Raises:
        AdapterError: the files differ from the method's result.
    """
    method, space = get(info.method), space_of(info.space)
    if method.statistics or (space.needs_start and any(parent.initial is None for parent in parents)):
        return 0, None
    computation = Computation(
        method, info.weights, info.parameters, info.seed, [parent.fingerprint for parent in info.parents]
    )
    coordinates = space.coordinates(parents)
    if not coordinates.separate or not (sites := _chosen(method, coordinates)):
        return 0, None
    part = space.coordinates([_only(parent, sites) for parent in parents])
    worst, narrow = 0.0, dict[str, Tensor]()
    for site, expected in _expected(computation, part, sites, torch.float64):
        loaded = read.dense(site).reshape(expected.shape)
        try:
            difference = _difference(site, loaded, expected, info)
        except AdapterError:
            difference = _difference(site, loaded, expected, info, COARSE)
            narrow = narrow or dict(_expected(computation, part, sites, torch.float32))
            _difference(site, loaded, narrow[site], info)
        worst = max(worst, difference)
    return len(sites), worst


def _chosen(method: Method, coordinates: Coordinates) -> list[str]:
    sizes: dict[str, int] = {}
    shapes = {name: update.shape for vector in coordinates.vectors for name, update in vector.items()}
    for name, shape in shapes.items():
        site = coordinates.site_of(name)
        sizes[site] = sizes.get(site, 0) + math.prod(shape) * len(coordinates.vectors)
    if method.granularity == "model":
        return sorted(sizes) if sum(sizes.values()) <= _NUMBERS else []
    chosen: list[str] = []
    left = _NUMBERS
    for site in sorted(sizes, key=lambda site: seed_of("evaluate", site)):
        if len(chosen) < _SITES and sizes[site] <= left:
            chosen.append(site)
            left -= sizes[site]
    return chosen


def _expected(
    computation: Computation, coordinates: Coordinates, sites: Sequence[str], dtype: torch.dtype
) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
    """Yield each site with its absolute update, computed in ``dtype``."""
    vectors = coordinates.vectors
    names = sorted({name for vector in vectors for name in vector if coordinates.site_of(name) in sites})
    rows = {name: computation.row(coordinates.site_of(name)) for name in names}
    if computation.method.granularity == "model":
        fused = _fuse_model(computation, rows, {name: _stack(name, vectors, dtype) for name in names})
    else:  # one thread each, as products by several threads may round differently
        results = in_threads(lambda name: _fuse(computation, rows[name], name, _stack(name, vectors, dtype)), names)
        fused = dict(zip(names, results, strict=True))
    updates = coordinates.back(TaskVector({name: Dense(tensor) for name, tensor in fused.items()}))
    for site in sites:
        yield site, updates[site].dense().double()


def _stack(name: str, vectors: Sequence[TaskVector], dtype: torch.dtype) -> Float[Tensor, " tasks *param"]:
    present = {i: vector[name] for i, vector in enumerate(vectors) if name in vector}
    stack = torch.zeros((len(vectors), *next(iter(present.values())).shape), dtype=dtype)
    for i, update in present.items():
        stack[i] = update.to(dtype).dense()
    return stack


def _fuse(
    computation: Computation, row: Sequence[float], name: str, stack: Float[Tensor, " tasks *param"]
) -> Float[Tensor, "*param"]:
    weights = stack.new_tensor(row).reshape(-1, *(1,) * (stack.ndim - 1))
    extra = _draws(computation, name, stack) | dict(computation.parameters)
    result: Tensor = computation.method.function(stack, weights=weights, **extra)
    return result


def _fuse_model(
    computation: Computation, rows: Mapping[str, Sequence[float]], stacks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Fuse all sites as one vector per task, for a method that needs the whole model."""
    flat = {name: stack.flatten(1) for name, stack in stacks.items()}
    sizes = [stack.shape[1] for stack in flat.values()]
    weights = torch.cat([stack.new_tensor(rows[n])[:, None].expand_as(stack) for n, stack in flat.items()], 1)
    extra: dict[str, Any] = dict(computation.parameters)
    if computation.method.random:
        draws = [_draws(computation, name, stack)["uniforms"].flatten(1) for name, stack in stacks.items()]
        extra["uniforms"] = torch.cat(draws, 1)
    fused = computation.method.function(torch.cat([*flat.values()], 1), weights=weights, **extra)
    parts = zip(stacks.items(), fused.split(sizes), strict=True)
    return {name: part.reshape(stack.shape[1:]) for (name, stack), part in parts}


def _draws(computation: Computation, name: str, stack: Tensor) -> dict[str, Any]:
    if not computation.method.random:
        return {}
    return {"uniforms": drawn(computation.seed, name, computation.fingerprints, stack.shape[1:])}


def _only(adapter: Adapter, sites: Sequence[str]) -> Adapter:
    """Return the adapter restricted to these sites."""
    initial = adapter.initial
    kept = None if initial is None else {site: initial[site] for site in sites if site in initial}
    updates = {site: adapter.updates[site] for site in sites if site in adapter.updates}
    return replace(adapter, updates=updates).with_details(initial=kept)


def _difference(site: str, loaded: Tensor, expected: Tensor, info: FusedInfo, tolerance: float = TOLERANCE) -> float:
    """Return the relative difference; for a truncated result, its difference from the recorded truncation error."""
    error = relative(loaded - expected, expected)
    recorded = (info.site_errors or {}).get(site, 0.0)
    fix = "report it, with the adapters' configurations; --no-verify writes it all the same"
    if not abs(error - recorded) <= tolerance:
        what = f"evaluated again, the fusion differs by {error:.1e} of its norm, but {recorded:.1e} is recorded"
        raise AdapterError(what, where=site, fix=fix)
    if info.error_bound is not None and not error <= info.error_bound + tolerance:
        what = f"the truncation loses {error:.1e} of the norm, and {info.error_bound:g} is the bound"
        raise AdapterError(what, where=site, fix=fix)
    one_rank = info.rank is not None and info.error_bound is None
    if one_rank and expected.ndim == 2 and min(expected.shape) <= _LARGEST_SVD:
        values = torch.linalg.svdvals(expected)
        least = float(values[info.rank :].norm()) / max(float(values.norm()), 1e-300)
        if not error <= least + tolerance:
            what = f"the truncation to rank {info.rank} loses {error:.1e} of the norm, but {least:.1e} is possible"
            raise AdapterError(what, where=site, fix=fix)
    return abs(error - recorded)
