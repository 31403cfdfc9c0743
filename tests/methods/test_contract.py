"""The contract of `tangora.methods`, for every method of the registry."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tangora.errors import FusionError
from tangora.methods import Method, get, methods

BUILT_IN = [
    "average", "breadcrumbs", "consensus", "dare", "dare_ties", "della", "fisher", "iso_c", "iso_cts", "knots",
    "magnitude_prune", "model_stock", "regmean", "slerp", "svd", "task_arithmetic", "ties", "ties_per_tensor",
    "ties_sum", "tsv_m",
]  # fmt: skip
MATRICES = ["iso_c", "iso_cts", "knots", "svd", "tsv_m"]  # by singular values and vectors
SPECTRAL = {*MATRICES, "regmean"}  # through a decomposition, so equal up to rounding
# How far rounding may move a spectral method's result in float64, relative to its largest entry. LAPACK answers for a
# matrix that is off by p · eps, where p grows with the size and is under 100 for these, and the methods magnify a
# relative error of their input no more than tenfold here: 100 · 10 · 2e-16, and some room. In float32 it would be
# 1e-4, which hides errors.
ROUNDING = 1e-11
ISOTROPIC = {"iso_c", "iso_cts"}  # change even a single update, unless its singular values are equal
WEIGHTED_FIRST = {"iso_c", "iso_cts", "svd"}  # weights multiply before what is not linear
DROPPING: dict[str, dict[str, Any]] = {"svd": {"components": 2}}  # where the default drops nothing of small tensors
NOTHING_DROPPED: dict[str, dict[str, Any]] = {
    "breadcrumbs": {"bottom": 0.0, "top": 0.0},
    "consensus": {"agreement": 1},
    "della": {"density": 1.0, "window": 0.0},
    "svd": {"components": 99},
}
ELEMENTWISE = [get(name) for name in BUILT_IN if get(name).granularity == "element"]
WITH_DENSITY = [get(name) for name in BUILT_IN if "density" in get(name).parameters]
TASKS, SHAPE = 3, (6, 5)


def stack(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((TASKS, *shape), generator=generator, dtype=torch.float64).to(dtype)


def stack_for(method: Method) -> Tensor:
    """In float64 for a spectral method, of which two ways to the same result are equal up to rounding only."""
    return stack(dtype=torch.float64 if method.name in SPECTRAL else torch.float32)


def fused(method: Method, deltas: Tensor, weights: Tensor, uniforms: Tensor | None = None, **parameters: Any) -> Tensor:
    """The method on the stack, or on the only number of tasks that it takes."""
    deltas, weights = deltas[: method.tasks], weights[: method.tasks]
    parameters = DROPPING.get(method.name, {}) | parameters
    if method.random:
        if uniforms is None:
            uniforms = torch.rand(deltas.shape, generator=torch.Generator().manual_seed(7))
        parameters["uniforms"] = uniforms
    if method.statistics:
        parameters["statistics"] = statistics_of(method, deltas)
    return method.function(deltas, weights=weights, **parameters)


def statistics_of(method: Method, deltas: Tensor) -> Tensor | None:
    """Some that go with the updates wherever these are cut, turned or permuted; what they say does not matter here."""
    wide = deltas if deltas.dtype == torch.float64 else deltas.float()
    if method.statistics == "fisher":
        return wide.square() + 0.1
    return wide.mT @ wide + torch.eye(deltas.shape[-1]) if deltas.ndim == 3 else None


def nothing_dropped(method: Method) -> dict[str, Any]:
    return NOTHING_DROPPED.get(method.name, {"density": 1.0} if "density" in method.parameters else {})


def one_update(method: Method) -> tuple[Tensor, Tensor]:
    """One task of weight 1 that the method should give back; where it wants several, the same one over and over."""
    delta = stack_for(method)[0]
    if method.name in ISOTROPIC:
        delta = torch.linalg.qr(delta).Q
    count = method.tasks or 1
    return delta.expand(count, *SHAPE).clone(), torch.ones(count, 1, 1)


def equal(method: Method, found: Tensor, expected: Tensor) -> bool:
    if method.name not in SPECTRAL:
        return torch.equal(found, expected)
    assert found.dtype == torch.float64
    return torch.allclose(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))


def per_task(*values: float, ndim: int = 2) -> Tensor:
    return torch.tensor(values).reshape(-1, *[1] * ndim)


@pytest.fixture(params=BUILT_IN)
def method(request: pytest.FixtureRequest) -> Method:
    return get(request.param)


WEIGHTS = per_task(0.5, 1.25, -0.25)


def test_every_method_is_tested() -> None:
    assert [m.name for m in methods().values() if m.function.__module__.startswith("tangora.")] == BUILT_IN


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (6, 5), (2, 3, 4)])
def test_shape_and_dtype(method: Method, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    result = fused(method, stack(shape=shape, dtype=dtype), per_task(0.5, 1.0, 0.25, ndim=len(shape)))
    assert result.shape == shape
    assert result.dtype == dtype
    assert bool(result.isfinite().all())


def test_half_precision_is_added_up_in_float32(method: Method) -> None:
    deltas = stack(dtype=torch.bfloat16)
    wide = fused(method, deltas.float(), WEIGHTS)
    assert torch.equal(fused(method, deltas, WEIGHTS), wide.bfloat16())


def test_weights_of_another_dtype_do_not_change_the_result(method: Method) -> None:
    assert fused(method, stack(), WEIGHTS.double()).dtype == torch.float32
    assert torch.equal(fused(method, stack(), WEIGHTS.double()), fused(method, stack(), WEIGHTS))


def test_inputs_are_not_changed(method: Method) -> None:
    deltas, weights = stack(), WEIGHTS.clone()
    uniforms = torch.rand(deltas.shape)
    before = [x.clone() for x in (deltas, weights, uniforms)]
    result = fused(method, deltas, weights, uniforms)
    result += 1  # nor does the result share their memory
    assert all(torch.equal(a, b) for a, b in zip(before, (deltas, weights, uniforms), strict=True))


def test_one_task_with_density_one_does_not_share_memory_with_its_result(method: Method) -> None:
    deltas, weights = one_update(method)
    result = fused(method, deltas, weights, **nothing_dropped(method))
    assert result.untyped_storage().data_ptr() != deltas.untyped_storage().data_ptr()


def test_order_of_tasks_does_not_matter(method: Method) -> None:
    deltas, uniforms = stack_for(method), torch.rand((TASKS, *SHAPE), generator=torch.Generator().manual_seed(3))
    expected = fused(method, deltas, WEIGHTS, uniforms)
    for order in itertools.permutations(range(method.tasks or TASKS)):
        p = list(order)
        torch.testing.assert_close(fused(method, deltas[p], WEIGHTS[p], uniforms[p]), expected)


@pytest.mark.parametrize("cuts", [[1, 5], [3, 3], [2, 2, 2], [1] * 6])
@pytest.mark.parametrize("method", ELEMENTWISE, ids=lambda m: m.name)
def test_chunks_give_the_same_bits_for_element_methods(method: Method, cuts: list[int]) -> None:
    deltas, uniforms = stack(), torch.rand(TASKS, *SHAPE)
    pairs = zip(deltas.split(cuts, dim=1), uniforms.split(cuts, dim=1), strict=True)
    chunks = [fused(method, d, WEIGHTS, u) for d, u in pairs]
    assert torch.equal(torch.cat(chunks), fused(method, deltas, WEIGHTS, uniforms))


def test_blocks_inside_a_method_change_nothing(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = stack(seed=5).abs()
    whole = [fused(method, stack(), w) for w in (WEIGHTS, weights, weights[:, :1], weights[:, :, :1])]
    monkeypatch.setattr("tangora.methods._sums._BLOCK", 8)
    blocks = [fused(method, stack(), w) for w in (WEIGHTS, weights, weights[:, :1], weights[:, :, :1])]
    assert all(torch.equal(a, b) for a, b in zip(whole, blocks, strict=True))


def test_only_model_and_tensor_methods_look_beyond_an_entry(method: Method) -> None:
    """The declared granularity is the finest that is true: a coarser promise would cost memory for nothing."""
    deltas, uniforms = stack(), torch.full((TASKS, *SHAPE), 0.45)
    deltas[:, :, 3:] *= 100
    pairs = zip(deltas.split(3, dim=2), uniforms.split(3, dim=2), strict=True)
    halves = torch.cat([fused(method, d, WEIGHTS, u) for d, u in pairs], 1)
    whole = fused(method, deltas, WEIGHTS, uniforms)
    assert torch.equal(halves, whole) == (method.granularity == "element")


def test_layout_in_memory_does_not_matter(method: Method) -> None:
    deltas, uniforms = stack_for(method), torch.rand(TASKS, *SHAPE)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (deltas, uniforms)]
    assert not strided[0].is_contiguous()
    assert equal(method, fused(method, strided[0], WEIGHTS, strided[1]), fused(method, deltas, WEIGHTS, uniforms))


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"della", "iso_cts", "knots", "regmean"}))
def test_rows_and_columns_are_treated_alike(name: str) -> None:
    """But for DELLA, which ranks in rows, and those that begin with the output directions, or the inputs."""
    deltas, uniforms = stack_for(get(name)), torch.rand(TASKS, *SHAPE)
    turned = fused(get(name), deltas.transpose(1, 2), WEIGHTS, uniforms.transpose(1, 2))
    assert equal(get(name), turned.T, fused(get(name), deltas, WEIGHTS, uniforms))


def test_determinism(method: Method) -> None:
    torch.manual_seed(0)
    first = fused(method, stack(), WEIGHTS)
    torch.manual_seed(1)
    assert torch.equal(first, fused(method, stack(), WEIGHTS))


def test_global_random_state_is_left_alone(method: Method) -> None:
    before = torch.get_rng_state()
    fused(method, stack(), WEIGHTS)
    assert torch.equal(before, torch.get_rng_state())


def test_identity(method: Method) -> None:
    """One task, weight 1, nothing dropped: the update itself, bit for bit but after a decomposition."""
    deltas, weights = one_update(method)
    assert equal(method, fused(method, deltas, weights, **nothing_dropped(method)), deltas[0])


@pytest.mark.parametrize("factor", [2.0, 0.5, -4.0, 0.0])
def test_homogeneity_is_as_promised(method: Method, factor: float) -> None:
    if not method.homogeneous and factor == 0:
        with pytest.raises(FusionError, match="must not sum to zero"):
            fused(method, stack(), WEIGHTS * factor)
        return
    scaled = fused(method, stack_for(method), WEIGHTS * factor)
    assert equal(method, scaled, factor * fused(method, stack_for(method), WEIGHTS)) == method.homogeneous


def test_linearity_is_as_promised(method: Method) -> None:
    """The engine takes the coefficients of a linear method from the identity matrix."""
    count = method.tasks or TASKS
    deltas, weights = stack(dtype=torch.float64)[:count], WEIGHTS[:count]
    parameters = {"density": 0.5} if "density" in method.parameters else {}
    coefficients = fused(method, torch.eye(count, dtype=torch.float64), weights.reshape(count, 1), **parameters)
    mixed = torch.einsum("t,t...->...", coefficients, deltas)
    agrees = torch.allclose(mixed, fused(method, deltas, weights, **parameters), rtol=0, atol=ROUNDING)
    assert agrees == method.linear


def test_additivity_is_as_promised(method: Method) -> None:
    """A search by gradients takes what a method makes of each task beside the others, and adds that up."""
    one, other = WEIGHTS, per_task(0.25, -0.5, 1.5)
    deltas = stack(dtype=torch.float64)
    apart, together = fused(method, deltas, one) + fused(method, deltas, other), fused(method, deltas, one + other)
    bound = ROUNDING * float(together.abs().max())
    assert torch.allclose(apart, together, rtol=0, atol=bound) == method.additive


def test_weights_broadcast(method: Method) -> None:
    """Per task, per task and row, per task and entry: only what they say counts, not how it is written."""
    deltas = stack()
    expected = fused(method, deltas, WEIGHTS.expand(TASKS, *SHAPE).contiguous())
    for weights in (WEIGHTS, WEIGHTS.expand(TASKS, *SHAPE), WEIGHTS.expand(TASKS, 1, SHAPE[1])):
        assert torch.equal(fused(method, deltas, weights), expected)


def test_weights_per_entry_are_used_per_entry(method: Method) -> None:
    deltas, rows = stack_for(method), torch.arange(1.0, 7.0).reshape(1, 6, 1)
    varied = fused(method, deltas, WEIGHTS * rows)
    if method.name in WEIGHTED_FIRST:
        expected = fused(method, deltas * WEIGHTS * rows, torch.ones(TASKS, 1, 1))
    else:
        plain = fused(method, deltas, WEIGHTS)
        expected = plain if method.name == "average" else plain * rows[0]
    torch.testing.assert_close(varied, expected)


def test_zero_updates_stay_zero(method: Method) -> None:
    assert torch.equal(fused(method, torch.zeros(TASKS, *SHAPE), WEIGHTS), torch.zeros(SHAPE))


def test_gradients_reach_the_weights(method: Method) -> None:
    """A coefficient search may differentiate through a fusion."""
    weights = WEIGHTS.clone().requires_grad_()
    fused(method, stack(), weights).square().sum().backward()
    assert weights.grad is not None
    assert bool((weights.grad != 0).any())


@pytest.mark.parametrize("name", MATRICES)
def test_a_kernel_is_a_matrix_of_its_outputs(name: str) -> None:
    deltas = stack(shape=(6, 2, 1, 3))
    flat = fused(get(name), deltas.reshape(TASKS, 6, 6), WEIGHTS)
    assert torch.equal(fused(get(name), deltas, per_task(0.5, 1.25, -0.25, ndim=4)).reshape(6, 6), flat)


@pytest.mark.parametrize("name", MATRICES)
def test_rounding_noise_does_not_grow(name: str) -> None:
    """Low-rank updates in float32 and in float64 give the same: nothing hangs on directions of no size."""
    g = torch.Generator().manual_seed(3)
    b, a = (torch.randn(TASKS, *s, generator=g, dtype=torch.float64) for s in ((20, 2), (2, 16)))
    exact = fused(get(name), b @ a, WEIGHTS.double())
    found = fused(get(name), b.float() @ a.float(), WEIGHTS)
    # `ROUNDING` with float32's eps; a direction made of noise would weigh as much as the others
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("repeat", [1, 2, 6])
def test_equal_updates_and_many_tasks_stay_finite_and_reproducible(name: str, repeat: int) -> None:
    deltas = stack(shape=(4, 3)).repeat(repeat, 1, 1)
    weights = torch.ones(len(deltas), 1, 1)
    found = fused(get(name), deltas, weights)
    assert bool(found.isfinite().all())
    turned = fused(get(name), deltas.flip(0), weights)
    torch.testing.assert_close(found, turned, rtol=1e-4, atol=1e-4 * float(found.abs().max()))


@pytest.mark.parametrize("density", [0, -0.1, 1.5, 20, float("nan"), float("inf")])
@pytest.mark.parametrize("method", WITH_DENSITY, ids=lambda m: m.name)
def test_density_out_of_range(method: Method, density: float) -> None:
    with pytest.raises(FusionError, match=rf"{method.name}: density must be in \(0, 1\], got .* at fuse.density"):
        fused(method, stack(), WEIGHTS, density=density)


def test_docstring_says_what_the_house_asks(method: Method) -> None:
    doc = method.function.__doc__ or ""
    assert method.summary.endswith(".")
    assert method.choose
    assert method.reference.startswith(("arXiv:", "doi:"))
    assert method.reference in doc
    assert "Args:" in doc
    assert ">>> " in doc
    refuses = method.tasks is not None or method.limits or method.name == "average"
    assert ("Raises:" in doc) == bool(refuses)


WITH_CUTOFF = [m for m in methods().values() if m.cutoff is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", WITH_CUTOFF, ids=lambda m: m.name)
def test_with_its_cutoffs_a_method_is_entry_by_entry(method: Method, dtype: torch.dtype) -> None:
    """Cutoffs found over the whole, blocks fused one by one: the same bits as the whole at once."""
    deltas = stack(dtype=dtype)
    whole = fused(method, deltas, WEIGHTS, **{method.cutoff: 0.3})
    sizes = deltas.float().abs().reshape(TASKS, -1).sort(descending=True).values
    cutoffs = sizes[:, 8].tolist()  # the ninth of thirty is the last of three tenths
    blocks = [fused(method, d, WEIGHTS, **{method.cutoff: 0.3, "cutoffs": cutoffs}) for d in deltas.split(2, dim=1)]
    assert torch.equal(torch.cat(blocks), whole)
    assert bool((whole == 0).any())
    with pytest.raises(FusionError, match="one cutoff per task"):
        fused(method, deltas, WEIGHTS, cutoffs=cutoffs[:2])


WITH_STATISTICS = [m for m in methods().values() if m.statistics is not None]


@pytest.mark.parametrize("method", WITH_STATISTICS, ids=lambda m: m.name)
def test_statistics_are_used_and_not_changed(method: Method) -> None:
    deltas = stack()
    known = statistics_of(method, deltas)
    assert known is not None
    before = known.clone()
    found = method.function(deltas, weights=WEIGHTS, statistics=known)
    assert torch.equal(known, before)
    flipped = method.function(deltas, weights=WEIGHTS, statistics=known.flip(0))
    assert not torch.allclose(found, flipped, rtol=1e-2)


@pytest.mark.parametrize("method", WITH_STATISTICS, ids=lambda m: m.name)
def test_without_statistics_of_a_tensor_it_is_averaged(method: Method) -> None:
    found = method.function(stack(), weights=WEIGHTS, statistics=None)
    torch.testing.assert_close(found, (WEIGHTS * stack()).mean(0))


@pytest.mark.parametrize("method", WITH_STATISTICS, ids=lambda m: m.name)
def test_only_the_ratio_of_statistics_counts(method: Method) -> None:
    deltas = stack(dtype=torch.float64)
    known = statistics_of(method, deltas)
    assert known is not None
    small = method.function(deltas, weights=WEIGHTS, statistics=known * 1e-20)
    torch.testing.assert_close(small, method.function(deltas, weights=WEIGHTS, statistics=known))


@pytest.mark.parametrize("method", [m for m in methods().values() if m.by_rows], ids=lambda m: m.name)
def test_rows_are_worked_on_alike_where_that_is_promised(method: Method) -> None:
    """The engine then applies the method to the factors A of low-rank updates."""
    deltas, mix = stack(dtype=torch.float64), torch.randn(9, 6, generator=torch.Generator().manual_seed(4)).double()
    known = statistics_of(method, deltas)
    rows = method.function(deltas, weights=WEIGHTS, statistics=known)
    mixed = method.function(mix @ deltas, weights=WEIGHTS, statistics=known)
    torch.testing.assert_close(mixed, mix @ rows)


@pytest.mark.parametrize("method", [get(name) for name in BUILT_IN if get(name).linear], ids=lambda m: m.name)
def test_the_rule_of_a_linear_method_is_what_it_does_to_the_identity(method: Method) -> None:
    weights = [0.5, -0.25, 2.0]
    assert method.rule is not None
    by_identity = replace(method, rule=None).coefficients(weights, {})
    assert method.coefficients(weights, {}) == pytest.approx(by_identity, rel=1e-15)


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
