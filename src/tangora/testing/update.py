"""`check_update`: the contract of `tangora.updates.update.Update`, for any form in which a format keeps updates."""

from __future__ import annotations

import torch
from torch import Tensor

from tangora.updates.update import Dense, LowRank, Update

__all__ = ["check_update"]


def check_update(update: Update) -> None:
    """Check that an update keeps its contract: whatever its form, it behaves as its dense tensor does.

    Args:
        update: a matrix or a vector that is not zero, preferably small.

    Raises:
        AssertionError: a promise is broken; the message says which.

    >>> import torch
    >>> check_update(LowRank(torch.ones(3, 1), torch.ones(1, 2), scaling=2.0))
    """
    assert isinstance(update, Update), f"{type(update).__name__} lacks a member of tangora.updates.update.Update"
    dense = update.dense()
    assert update.shape == tuple(dense.shape), f"shape is {update.shape}, that of dense() {tuple(dense.shape)}"
    assert bool(dense.any()), "the update to check is zero, and zero meets most promises trivially"
    assert torch.equal(update.dense(), dense), "dense() gives other numbers the second time"
    _check_factors(update, dense)
    _check_rows(update, dense)
    _check_algebra(update, dense)
    _check_values(update, dense)
    shown = repr(update)
    assert "\n" not in shown, f"repr must be one line, got {shown[:60]!r}"
    assert len(shown) <= 120, f"repr must be short, got {len(shown)} characters"
    assert torch.equal(update.dense(), dense), "an operation changed the update"


def _check_factors(update: Update, dense: Tensor) -> None:
    factors = update.factors()
    if factors is None:
        return
    b, a = factors.b, factors.a
    assert b.shape[1] == a.shape[0] == factors.rank, f"factors() of rank {factors.rank} are {b.shape}, {a.shape}"
    assert factors.shape == update.shape, f"factors() are of shape {factors.shape}, the update of {update.shape}"
    _close((b @ a) * factors.scaling, dense, "scaling * b @ a is not dense()")


def _check_rows(update: Update, dense: Tensor) -> None:
    for transposed in (False, True) if dense.ndim == 2 else (False,):
        tensor = dense.T if transposed else dense
        middle = (len(tensor) + 1) // 2
        for start, stop in ((0, middle), (middle, len(tensor)), (0, len(tensor) + 1)):
            rows = update.rows(start, stop, transposed=True) if transposed else update.rows(start, stop)
            name = f"rows({start}, {stop}, transposed={transposed})"
            assert rows.shape == tensor[start:stop].shape, f"{name} is of shape {tuple(rows.shape)}"
            _close(rows, tensor[start:stop], f"{name} are not the rows of dense()")


def _check_algebra(update: Update, dense: Tensor) -> None:
    other = Dense(torch.linspace(-1.0, 1.0, dense.numel(), dtype=dense.dtype).reshape(dense.shape))
    results = {
        "scaled(-0.5)": (update.scaled(-0.5), -0.5 * dense),
        "scaled(1.0)": (update.scaled(1.0), dense),
        "scaled(0.0)": (update.scaled(0.0), 0 * dense),
        "2 * update": (2 * update, 2 * dense),
        "update / 4": (update / 4, dense / 4),
        "-update": (-update, -dense),
        "sum([update, update])": (sum([update, update]), 2 * dense),
        "update - update": (update - update, 0 * dense),
        "update + dense": (update + other, dense + other.weight),
        "dense - update": (other - update, other.weight - dense),
    }
    for name, (actual, expected) in results.items():
        assert isinstance(actual, Update), f"{name} is no update, but {type(actual).__name__}"
        _close(actual.dense(), expected, f"{name} is another tensor")
    scale = float(dense.double().norm())
    _near(update.norm(), scale, "norm()")
    _near(update.dot(update), scale**2, "dot(itself)")
    inner = float((dense.double() * other.weight.double()).sum())
    for name, dot in (("update.dot(dense)", update.dot(other)), ("dense.dot(update)", other.dot(update))):
        assert abs(dot - inner) <= 1e-5 * scale * other.norm(), f"{name} is {dot}, not {inner}"
    if dense.ndim == 2:
        _check_compress(update, dense)


def _check_compress(update: Update, dense: Tensor) -> None:
    values = torch.linalg.svdvals(dense.double())
    for rank in (1, len(values)):
        smaller, error = update.compress(rank)
        least = float(values[rank:].norm() / values.norm())
        assert abs(error - least) <= 1e-5, f"compress({rank}) reports the error {error}, the least is {least}"
        left = float((smaller.dense().double() - dense.double()).norm() / values.norm())
        assert abs(left - least) <= 1e-5, f"compress({rank}) is {left} away, where {least} is possible"


def _check_values(update: Update, dense: Tensor) -> None:
    assert update.digest() == update.digest(), "digest() gives another text the second time"
    assert update.digest() != update.scaled(2.0).digest(), "digest() does not depend on the numbers"
    twin = Dense(dense) if (factors := update.factors()) is None else LowRank(factors.b, factors.a, factors.scaling)
    assert update.digest() == twin.digest(), f"digest() is not that of the same numbers as a {type(twin).__name__}"
    _close(update.to(torch.float64).dense(), dense.double(), "to(torch.float64) has other numbers")


def _close(actual: Tensor, expected: Tensor, what: str) -> None:
    bound = 1e-5 * float(expected.double().abs().max())
    away = float((actual.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    assert away <= max(bound, 1e-12), f"{what}, by {away:.1e} where {bound:.1e} is allowed"


def _near(actual: float, expected: float, what: str) -> None:
    assert abs(actual - expected) <= 1e-5 * abs(expected), f"{what} is {actual}, not {expected}"
