"""`check_space`: the promises of `tangora.fusion.contract.Space`, on tiny adapters that it makes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.metadata import Metadata
from tangora.errors import FusionError
from tangora.fusion.computation import Computation
from tangora.fusion.contract import Coordinates, Space, space_of
from tangora.fusion.engine import Engine
from tangora.methods import get
from tangora.updates.task_vector import Dense, LowRank, TaskVector, Update

__all__ = ["check_space"]

_SHAPES = {"down": (5, 8), "up": (8, 5)}
_RANK, _SCALING = 2, 2.0
_NAMES = ("a", "b", "c")
_COEFFICIENTS = (0.5, -0.25, 1.25)
# Everything is drawn and computed in float64, where a few products and a small eigenproblem round by 1e-13.
_ROUNDING = 1e-9


def check_space(space: Space | str) -> None:
    """Check the promises of a space: what it accepts and refuses, and that its coordinates convert back to updates.

    Args:
        space: the one to check, or its name.

    Raises:
        AssertionError: says which promise is broken.

    >>> check_space("delta")
    """
    chosen = space_of(space) if isinstance(space, str) else space
    assert isinstance(chosen, Space), "it lacks a member of tangora.fusion.contract.Space"
    assert chosen.summary.strip(), "the summary is empty"
    assert "\n" not in chosen.summary, "the summary must be one line"
    plain = [_low_rank(seed) for seed in (1, 2, 3)]
    linear = [_low_rank(seed, linearized=True) for seed in (1, 2, 3)]
    for adapters in (plain, linear):
        _check_coordinates(chosen, adapters)
    _check_kinds(chosen)
    _check_starts(chosen, plain)
    if chosen.intrinsic:
        _check_factorization(chosen, plain)


def _check_kinds(space: Space) -> None:
    """Check that adapters without factors are accepted or refused, as declared."""
    full = [_full(seed) for seed in (1, 2, 3)]
    if space.needs_factors:
        _refused(space, full, "needs_factors=True, but adapters of kind full are not refused")
    else:
        _check_coordinates(space, full)


def _check_starts(space: Space, adapters: Sequence[Adapter]) -> None:
    """Check that adapters of unknown φ₀ are accepted or refused, as declared."""
    unknown = [adapter.with_details(initial=None) for adapter in adapters]
    if space.needs_start:
        _refused(space, unknown, "needs_start=True, but adapters of unknown φ₀ are not refused")
    else:
        _check_coordinates(space, unknown)


def _check_coordinates(space: Space, adapters: Sequence[Adapter]) -> None:
    """Check that coordinates are values and convert back, and add up as changes do if the space is linear."""
    before = [adapter.fingerprint for adapter in adapters]
    space.check(adapters, _NAMES)
    made = space.coordinates(adapters)
    assert len(made.vectors) == len(adapters), f"{len(adapters)} adapters have {len(made.vectors)} vectors"
    sites = {made.site_of(name) for vector in made.vectors for name in vector}
    assert sites == set(adapters[0].updates), f"site_of names the sites {sorted(sites)}"
    for vector, again in zip(made.vectors, space.coordinates(adapters).vectors, strict=True):
        _equal(vector, again, "the same adapters have other coordinates the second time")
    alone = space.coordinates(adapters[:1])
    _equal(
        alone.back(alone.vectors[0]), adapters[0].updates, "the coordinates of one adapter do not convert back to it"
    )
    if made.separate:
        for vector, adapter in zip(made.subset([2, 0]).vectors, (adapters[2], adapters[0]), strict=True):
            what = "separate=True, but coordinates depend on the other adapters"
            _equal(vector, space.coordinates([adapter]).vectors[0], what)
    if space.plain:
        for vector, adapter in zip(made.vectors, adapters, strict=True):
            _equal(vector, adapter.task_vector, "plain=True, but a vector is not the change of the weights")
    if space.is_linear(adapters):
        _check_sums(made, adapters)
    assert before == [adapter.fingerprint for adapter in adapters], "the adapters were changed"


def _check_sums(made: Coordinates, adapters: Sequence[Adapter]) -> None:
    fused = made.back(TaskVector.combination(made.vectors, _COEFFICIENTS))
    changes = TaskVector.combination([adapter.task_vector for adapter in adapters], _COEFFICIENTS)
    expected = changes + TaskVector(adapters[0].start) if adapters[0].start else changes
    _equal(fused, expected, "is_linear is true, but a sum of coordinates is not the sum of the changes")


def _check_factorization(space: Space, adapters: Sequence[Adapter]) -> None:
    """Check that the fused update does not depend on how the updates are factored."""
    turned = [replace(a, updates={site: _refactored(update) for site, update in a.updates.items()}) for a in adapters]
    results = [_fused(space, company) for company in (adapters, turned)]
    _equal(results[0], results[1], "intrinsic=True, but the result depends on how updates are factored")


def _fused(space: Space, adapters: Sequence[Adapter]) -> Mapping[str, Update]:
    made = space.coordinates(adapters)
    computation = Computation(get("model_stock"), list(_COEFFICIENTS), {})
    return made.back(TaskVector(Engine(made).dense(computation, lambda update: update)))


def _refused(space: Space, adapters: Sequence[Adapter], what: str) -> None:
    try:
        space.check(adapters, _NAMES)
    except FusionError as error:
        message = str(error)
    else:
        raise AssertionError(what)
    assert any(name in message for name in _NAMES), f"the refusal names no adapter: {message}"


def _equal(actual: Mapping[str, Update], expected: Mapping[str, Update], what: str) -> None:
    assert actual.keys() == expected.keys(), f"{what}: {sorted(actual)} in place of {sorted(expected)}"
    for name, update in expected.items():
        wanted, shape = update.dense(), actual[name].shape
        assert shape == update.shape, f"{what}: {name} is of shape {shape} in place of {update.shape}"
        away = float((actual[name].dense() - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-30)
        assert away <= _ROUNDING, f"{what}: {name} is {away:.1e} of its largest entry away"


def _low_rank(seed: int, linearized: bool = False) -> Adapter:
    """Return an adapter that starts from B₀ = 0 and a shared A₀. In a linearized one, A stays A₀."""
    start, moved = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    updates: dict[str, Update] = {}
    initial: dict[str, LowRank] = {}
    for site, (out, inside) in _SHAPES.items():
        a, b = _normal(start, _RANK, inside), _normal(moved, out, _RANK) * seed
        initial[site] = LowRank(torch.zeros_like(b), a, _SCALING)
        updates[site] = LowRank(b, a if linearized else a + 0.3 * _normal(moved, _RANK, inside), _SCALING)
    metadata = Metadata(linearize="module") if linearized else Metadata()
    return Adapter(updates, metadata, LoraDetails(initial=initial))


def _full(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {f"{site}.weight": Dense(_normal(generator, *shape)) for site, shape in _SHAPES.items()}
    return Adapter(updates, Metadata(kind="full"))


def _refactored(update: Update) -> Update:
    """Return the same update with other factors, ``(B G⁻¹)(G A)``."""
    factors = update.factors()
    assert factors is not None
    g = torch.tensor([[2.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    return LowRank(factors.b @ torch.linalg.inv(g), g @ factors.a, factors.scaling)


def _normal(generator: torch.Generator, *shape: int) -> Any:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
