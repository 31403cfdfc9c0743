"""The contract of `tangora.updates.update.Update`, for any form that a format keeps updates in."""

from __future__ import annotations

import torch
from torch import Tensor

from tangora.updates.update import Dense, LowRank, Update

__all__ = ["check_update"]


def check_update(update: Update) -> None:
    """Check that an update is a value of its contract: every form of the same numbers behaves as the whole tensor.

    Args:
        update: a matrix or a vector, not zero; best a small one.

    Raises:
        AssertionError: a promise is broken; the message says which.

    >>> import torch
    >>> check_update(LowRank(torch.ones(3, 1), torch.ones(1, 2), scaling=2.0))
    """
    assert isinstance(update, Update), f"{type(update).__name__} lacks a member of tangora.updates.update.Update"
    whole = update.dense()
    assert update.shape == tuple(whole.shape), f"shape is {update.shape}, that of dense() {tuple(whole.shape)}"
    assert bool(whole.any()), "the update to check is zero, with which most promises are met by anything"
    assert torch.equal(update.dense(), whole), "dense() gives other numbers the second time"
    _check_factors(update, whole)
    _check_rows(update, whole)
    _check_algebra(update, whole)
    _check_values(update, whole)
    shown = repr(update)
    assert "\n" not in shown, f"repr must be one line, got {shown[:60]!r}"
    assert len(shown) <= 120, f"repr must be short, got {len(shown)} characters"
    assert torch.equal(update.dense(), whole), "an operation changed the update"


def _check_factors(update: Update, whole: Tensor) -> None:
    factors = update.factors()
    if factors is None:
        return
    b, a = factors.b, factors.a
    assert b.shape[1] == a.shape[0] == factors.rank, f"factors() of rank {factors.rank} are {b.shape}, {a.shape}"
    assert factors.shape == update.shape, f"factors() are of shape {factors.shape}, the update of {update.shape}"
    _close((b @ a) * factors.scaling, whole, "scaling * b @ a is not dense()")


def _check_rows(update: Update, whole: Tensor) -> None:
    for transposed in (False, True) if whole.ndim == 2 else (False,):
        tensor = whole.T if transposed else whole
        middle = (len(tensor) + 1) // 2
        for start, stop in ((0, middle), (middle, len(tensor)), (0, len(tensor) + 1)):
            rows = update.rows(start, stop, transposed=True) if transposed else update.rows(start, stop)
            name = f"rows({start}, {stop}, transposed={transposed})"
            assert rows.shape == tensor[start:stop].shape, f"{name} is of shape {tuple(rows.shape)}"
            _close(rows, tensor[start:stop], f"{name} are not the rows of dense()")


def _check_algebra(update: Update, whole: Tensor) -> None:
    other = Dense(torch.linspace(-1.0, 1.0, whole.numel(), dtype=whole.dtype).reshape(whole.shape))
    results = {
        "scaled(-0.5)": (update.scaled(-0.5), -0.5 * whole),
        "scaled(1.0)": (update.scaled(1.0), whole),
        "scaled(0.0)": (update.scaled(0.0), 0 * whole),
        "2 * update": (2 * update, 2 * whole),
        "update / 4": (update / 4, whole / 4),
        "-update": (-update, -whole),
        "sum([update, update])": (sum([update, update]), 2 * whole),
        "update - update": (update - update, 0 * whole),
        "update + dense": (update + other, whole + other.weight),
        "dense - update": (other - update, other.weight - whole),
    }
    for name, (found, expected) in results.items():
        assert isinstance(found, Update), f"{name} is no update, but {type(found).__name__}"
        _close(found.dense(), expected, f"{name} is another tensor")
    scale = float(whole.double().norm())
    _near(update.norm(), scale, "norm()")
    _near(update.dot(update), scale**2, "dot(itself)")
    inner = float((whole.double() * other.weight.double()).sum())
    for name, dot in (("update.dot(dense)", update.dot(other)), ("dense.dot(update)", other.dot(update))):
        assert abs(dot - inner) <= 1e-5 * scale * other.norm(), f"{name} is {dot}, not {inner}"
    if whole.ndim == 2:
        _check_compress(update, whole)


def _check_compress(update: Update, whole: Tensor) -> None:
    values = torch.linalg.svdvals(whole.double())
    for rank in (1, len(values)):
        smaller, error = update.compress(rank)
        least = float(values[rank:].norm() / values.norm())
        assert abs(error - least) <= 1e-5, f"compress({rank}) reports the error {error}, the least is {least}"
        left = float((smaller.dense().double() - whole.double()).norm() / values.norm())
        assert abs(left - least) <= 1e-5, f"compress({rank}) is {left} away, where {least} is possible"


def _check_values(update: Update, whole: Tensor) -> None:
    assert update.digest() == update.digest(), "digest() gives another text the second time"
    assert update.digest() != update.scaled(2.0).digest(), "digest() does not depend on the numbers"
    twin = Dense(whole) if (factors := update.factors()) is None else LowRank(factors.b, factors.a, factors.scaling)
    assert update.digest() == twin.digest(), f"digest() is not that of the same numbers as a {type(twin).__name__}"
    _close(update.to(torch.float64).dense(), whole.double(), "to(torch.float64) has other numbers")


def _close(found: Tensor, expected: Tensor, what: str) -> None:
    bound = 1e-5 * float(expected.double().abs().max())
    away = float((found.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    assert away <= max(bound, 1e-12), f"{what}, by {away:.1e} where {bound:.1e} is allowed"


def _near(found: float, expected: float, what: str) -> None:
    assert abs(found - expected) <= 1e-5 * abs(expected), f"{what} is {found}, not {expected}"
