"""The contract of `tangora.methods`: every method of the registry keeps its promises, and broken ones are caught.

What is asked of a method goes by what it declares (`tangora.methods.Promises`), so a new one is tested here as soon as
its file is there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tangora.errors import ArgumentError, PluginError
from tangora.methods import Method, Promises, get, methods
from tangora.testing import METHOD_CHECKS, check_method
from tangora.testing._method_inputs import call, stack, statistics_of, weights_of

OURS = [m for m in methods().values() if m.function.__module__.startswith("tangora.")]


@pytest.fixture(params=OURS, ids=lambda m: m.name)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_every_promise_is_kept(method: Method, check: Any) -> None:
    check(method)


# --- what the house asks of its own methods, and not of others'


def test_blocks_inside_a_method_change_nothing(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas, scales = stack(), stack(seed=5).abs()
    weights = weights_of(deltas)
    given = (weights, scales, scales[:, :1], scales[:, :, :1])
    whole = [call(method, deltas, w) for w in given]
    monkeypatch.setattr("tangora.methods._sums._BLOCK", 32)
    assert all(torch.equal(call(method, deltas, w), one) for w, one in zip(given, whole, strict=True))


@pytest.mark.parametrize("beyond", [-1.0, 1.0, float("nan")])
def test_a_function_called_by_itself_refuses_what_is_out_of_range(method: Method, beyond: float) -> None:
    deltas = stack()
    for name, limit in method.limits.items():
        value = float("nan") if beyond != beyond else limit.low + beyond if beyond < 0 else limit.high + beyond
        if isinstance(method.parameters[name], int) or value in limit or value in (float("inf"), float("-inf")):
            continue
        with pytest.raises(ArgumentError, match=rf"{method.name}: {name} must be in .*, got .* at fuse.{name}"):
            call(method, deltas, weights_of(deltas), None, None, **{name: value})


def test_docstring_says_what_the_house_asks(method: Method) -> None:
    doc = method.function.__doc__ or ""
    assert method.summary.endswith(".")
    assert method.choose
    assert method.reference.startswith(("arXiv:", "doi:"))
    assert method.reference in doc
    assert "Args:" in doc
    assert ">>> " in doc
    assert ("Raises:" in doc) == bool(method.tasks or method.limits or not method.homogeneous)


@pytest.mark.parametrize("method", [m for m in OURS if m.statistics], ids=lambda m: m.name)
def test_without_statistics_of_a_tensor_it_is_averaged(method: Method) -> None:
    deltas = stack()
    found = method.function(deltas, weights=weights_of(deltas), statistics=None)
    torch.testing.assert_close(found, (weights_of(deltas) * deltas).mean(0))


@pytest.mark.parametrize("method", [m for m in OURS if m.statistics], ids=lambda m: m.name)
def test_only_the_ratio_of_statistics_counts(method: Method) -> None:
    deltas = stack(dtype=torch.float64)
    known = statistics_of(method, deltas)
    assert known is not None
    small = call(method, deltas, weights_of(deltas), statistics=known * 1e-20)
    torch.testing.assert_close(small, call(method, deltas, weights_of(deltas), statistics=known))


@pytest.mark.parametrize("method", [m for m in OURS if not m.identity], ids=lambda m: m.name)
def test_what_makes_singular_values_equal_keeps_an_update_whose_are(method: Method) -> None:
    delta = torch.linalg.qr(stack(dtype=torch.float64)[0]).Q
    found = call(method, delta[None], torch.ones(1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(found, delta, rtol=0, atol=1e-9)


# --- broken methods are caught


def first(deltas: Tensor, *, weights: Tensor, density: float = 0.5) -> Tensor:
    """Return the first task's update."""
    return (weights * deltas.float())[0].to(deltas.dtype)


def rounded(deltas: Tensor, *, weights: Tensor) -> Tensor:
    """Return the sum, in whatever precision the updates have."""
    return (weights.to(deltas.dtype) * deltas).sum(0)


def impatient(deltas: Tensor, *, weights: Tensor) -> Tensor:
    """Return the sum of updates that are changed on the way."""
    deltas *= 1.5
    return (weights * deltas.float()).sum(0).to(deltas.dtype)


def dice(deltas: Tensor, *, weights: Tensor) -> Tensor:
    """Return the sum of some entries, which are drawn."""
    return (weights * deltas.float() * torch.rand(deltas.shape)).sum(0).to(deltas.dtype)


def indifferent(deltas: Tensor, *, weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return the sum, whatever the uniforms are."""
    return get("task_arithmetic")(deltas, weights=weights)


def record(function: Any, **changes: Any) -> Method:
    known = get("task_arithmetic")
    return replace(known, name=function.__name__, function=function, rule=None, **changes)


BROKEN = [
    (record(first), "check_order_of_tasks", "the tasks in the order"),
    (record(rounded), "check_sums_of_half_precision", "bfloat16 is not added up in float32"),
    (record(impatient), "check_no_mutation", "deltas were changed"),
    (record(dice, linear=False), "check_determinism", "draws from the global generator"),
    (record(indifferent, random=True), "check_determinism", "random=True, but the uniforms change nothing"),
    (replace(get("ties"), linear=True), "check_linearity", "linear=True, but"),
    (replace(get("task_arithmetic"), linear=False), "check_linearity", "linear=False, but"),
    (replace(get("ties"), granularity="element"), "check_granularity", "'element', but chunks differ"),
    (replace(get("dare"), granularity="tensor", after_thinning=None), "check_granularity", "declare 'element'"),
    (replace(get("average"), homogeneous=True), "check_homogeneity", "homogeneous=True, but"),
    (replace(get("iso_c"), additive=True), "check_additivity", "additive=True, but"),
    (replace(get("iso_c"), identity=True), "check_identity", "identity=True, but one update"),
    (replace(get("magnitude_prune"), neutral={"density": 0.5}), "check_identity", "identity=True, but one update"),
    (replace(get("magnitude_prune"), neutral={"density": 7.0}), "check_limits", "density must be in"),
    (replace(get("della"), symmetric=True), "check_symmetry", "symmetric=True, but the transposed updates"),
    (replace(get("tsv_m"), exact=True), "check_symmetry", "symmetric=True, but the transposed updates"),
    (
        replace(get("ties_per_tensor"), after_thinning="elected_sum"),
        "check_thinning",
        "after_thinning='elected_sum', but",
    ),
    (replace(get("average"), rule=lambda weights: list(weights)), "check_linearity", "the rule gives"),
]


@pytest.mark.parametrize(("broken", "check", "message"), BROKEN, ids=lambda x: x.name if isinstance(x, Method) else x)
def test_a_broken_promise_is_caught(broken: Method, check: str, message: str) -> None:
    (run,) = [function for function in METHOD_CHECKS if function.__name__ == check]
    with pytest.raises((AssertionError, ArgumentError), match=message):
        run(broken)
    with pytest.raises(AssertionError, match=f"^{broken.name}: "):
        check_method(broken)


def test_a_method_that_fails_in_its_own_way_is_named() -> None:
    with pytest.raises(AssertionError, match=r"^fisher: check_rows ends with RuntimeError: The size of tensor a"):
        check_method(replace(get("fisher"), by_rows=True))


def test_promises_are_checked_where_they_are_made() -> None:
    assert Promises(granularity="tensor").homogeneous
    with pytest.raises(PluginError, match="no such after_thinning, got 'product'"):
        Promises(granularity="tensor", cutoff="density", after_thinning="product")  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="after_thinning is for a method that thins"):
        Promises(granularity="element", after_thinning="sum")
    assert get("ties").granularity == "model"
    assert repr(get("ties")) == "Method('ties', model, density=0.2)"


# --- elections


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tasks", "shape"), [(1, ()), (2, (50,)), (7, (3, 4, 5)), (300, (4,))])
@pytest.mark.parametrize("mean", [True, False])
def test_an_election_by_numpy_has_the_bits_of_one_by_torch(
    mean: bool, tasks: int, shape: tuple[int, ...], dtype
) -> None:
    from tangora.methods import _sums

    generator = torch.Generator().manual_seed(0)
    sparse = [torch.randn(shape, generator=generator, dtype=dtype).round(decimals=1) for _ in range(tasks)]
    for wide in ((1,) * len(shape), shape):
        for weights in (torch.ones(tasks, *wide), torch.randn((tasks, *wide), generator=generator)):
            expected = _sums._elected_by_torch(sparse, weights, mean)
            assert torch.equal(_sums._elected(sparse, weights, mean), expected)
