"""A non-linear fusion evaluated again at some sites, in float64 on dense matrices, beside what stock peft loads.

    parents -> dense updates of a site, in float64 -> the method -> E;    the files -> peft -> P;    ‖P − E‖ / ‖E‖

Neither the engine and its factors nor truncation have a part in it. Where the result was cut, the
difference must be the error that was told, and that one the smallest that its rank allows (Eckart-Young). Sites are
taken in an order drawn from their names, as long as they fit into 2²⁴ numbers of all tasks, at most four.

A rounding may move an entry across a threshold, which matters where few are kept: in KnOTS of small sites one entry is
2 % of the norm. So a difference of up to 25 % is no error where float32 gives, of the same updates, what the files say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.adapters.in_peft.comparison import InPeft, relative
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

__all__ = ["evaluate_again"]

TOLERANCE, COARSE = 1e-2, 0.25  # rounding may move an entry across a threshold
_SITES, _NUMBERS = 4, 2**24
_WHOLE_SVD = 768  # the shorter side of a matrix whose singular values are computed


def evaluate_again(info: FusedInfo, parents: Sequence[Adapter], read: InPeft) -> tuple[int, float | None]:
    """At how many sites, and the largest difference; at none where what it needs is not known, or too large.

    Raises:
        AdapterError: the files hold something else than the method gives.
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
        found = read.dense(site).reshape(expected.shape)
        try:
            difference = _difference(site, found, expected, info)
        except AdapterError:
            difference = _difference(site, found, expected, info, COARSE)
            narrow = narrow or dict(_expected(computation, part, sites, torch.float32))
            _difference(site, found, narrow[site], info)
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
    """Site -> the whole update, as the method makes it in ``dtype``."""
    vectors = coordinates.vectors
    names = sorted({name for vector in vectors for name in vector if coordinates.site_of(name) in sites})
    rows = {name: computation.row(coordinates.site_of(name)) for name in names}
    if computation.method.granularity == "model":
        pieces = _together(computation, rows, {name: _stack(name, vectors, dtype) for name in names})
    else:  # a thread for each, as products in several may round otherwise
        made = in_threads(lambda name: _one(computation, rows[name], name, _stack(name, vectors, dtype)), names)
        pieces = dict(zip(names, made, strict=True))
    whole = coordinates.back(TaskVector({n: Dense(p) for n, p in pieces.items()}))
    for site in sites:
        yield site, whole[site].dense().double()


def _stack(name: str, vectors: Sequence[TaskVector], dtype: torch.dtype) -> Float[Tensor, " tasks *param"]:
    present = {i: vector[name] for i, vector in enumerate(vectors) if name in vector}
    stack = torch.zeros((len(vectors), *next(iter(present.values())).shape), dtype=dtype)
    for i, update in present.items():
        stack[i] = update.to(dtype).dense()
    return stack


def _one(
    computation: Computation, row: Sequence[float], name: str, stack: Float[Tensor, " tasks *param"]
) -> Float[Tensor, "*param"]:
    weights = stack.new_tensor(row).reshape(-1, *(1,) * (stack.ndim - 1))
    given = _draws(computation, name, stack) | dict(computation.parameters)
    made: Tensor = computation.method.function(stack, weights=weights, **given)
    return made


def _together(
    computation: Computation, rows: Mapping[str, Sequence[float]], stacks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every site as one vector per task, for a method that must see the whole model."""
    flat = {name: stack.flatten(1) for name, stack in stacks.items()}
    sizes = [stack.shape[1] for stack in flat.values()]
    weights = torch.cat([stack.new_tensor(rows[n])[:, None].expand_as(stack) for n, stack in flat.items()], 1)
    given: dict[str, Any] = dict(computation.parameters)
    if computation.method.random:
        draws = [_draws(computation, name, stack)["uniforms"].flatten(1) for name, stack in stacks.items()]
        given["uniforms"] = torch.cat(draws, 1)
    whole = computation.method.function(torch.cat([*flat.values()], 1), weights=weights, **given)
    pieces = zip(stacks.items(), whole.split(sizes), strict=True)
    return {name: piece.reshape(stack.shape[1:]) for (name, stack), piece in pieces}


def _draws(computation: Computation, name: str, stack: Tensor) -> dict[str, Any]:
    if not computation.method.random:
        return {}
    return {"uniforms": drawn(computation.seed, name, computation.fingerprints, stack.shape[1:])}


def _only(adapter: Adapter, sites: Sequence[str]) -> Adapter:
    """The adapter at these sites alone."""
    initial = adapter.initial
    kept = None if initial is None else {site: initial[site] for site in sites if site in initial}
    updates = {site: adapter.updates[site] for site in sites if site in adapter.updates}
    return replace(adapter, updates=updates).with_details(initial=kept)


def _difference(site: str, found: Tensor, expected: Tensor, info: FusedInfo, tolerance: float = TOLERANCE) -> float:
    """How far what was read is from what it should be; of a cut result, how far that error is from the one told."""
    error = relative(found - expected, expected)
    told = (info.site_errors or {}).get(site, 0.0)
    fix = "report it, with the adapters' configurations; --no-verify writes it all the same"
    if not abs(error - told) <= tolerance:
        what = f"evaluated again, the fusion differs by {error:.1e} of its norm where {told:.1e} is told"
        raise AdapterError(what, where=site, fix=fix)
    if info.rank is not None and expected.ndim == 2 and min(expected.shape) <= _WHOLE_SVD:
        values = torch.linalg.svdvals(expected)
        least = float(values[info.rank :].norm()) / max(float(values.norm()), 1e-300)
        if not error <= least + tolerance:
            what = f"the cut to rank {info.rank} loses {error:.1e} of the norm, where {least:.1e} is the least"
            raise AdapterError(what, where=site, fix=fix)
    return abs(error - told)
