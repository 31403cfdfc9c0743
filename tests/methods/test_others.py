"""Methods that see a tensor as a whole: their contract, oracles, and cases by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from others import OTHERS
from torch import Tensor

from tangora.errors import FusionError
from tangora.methods import Method, get

SPECTRAL = ["svd", "tsv_m", "iso_c", "iso_cts", "knots"]
TASKS, SHAPE = 2, (6, 5)  # two, so that slerp is among them
WEIGHTS = torch.tensor([0.5, 1.25]).reshape(2, 1, 1)


def stack(seed: int = 0, tasks: int = TASKS, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn((tasks, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fused(method: Method, deltas: Tensor, weights: Tensor, uniforms: Tensor | None = None, **parameters: Any) -> Tensor:
    parameters = {**OTHERS[method.name][1], **parameters}
    if method.random:
        drawn = torch.rand(deltas.shape, generator=torch.Generator().manual_seed(7))
        parameters["uniforms"] = drawn if uniforms is None else uniforms
    return method.function(deltas, weights=weights, **parameters)


@pytest.fixture(params=sorted(OTHERS))
def method(request: pytest.FixtureRequest) -> Method:
    return get(request.param)


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (4, 4), (3, 9)])
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_agrees_with_the_oracle(method: Method, tasks: int, shape: tuple[int, int]) -> None:
    if method.name == "slerp" and tasks > 2:
        pytest.skip("it takes two")
    if method.name == "tsv_m" and tasks > min(shape):
        pytest.skip("more directions than dimensions: the oracle's inverse root does not exist")
    oracle, parameters = OTHERS[method.name]
    for seed in range(5):
        deltas = stack(seed, tasks, shape)
        weights = torch.linspace(0.3, 1.2, tasks, dtype=torch.float64)
        more = {"uniforms": torch.rand(deltas.shape, generator=torch.Generator().manual_seed(seed))}
        more = more if method.random else {}
        wanted = oracle(deltas.numpy(), weights.numpy(), **{k: v.numpy() for k, v in more.items()}, **parameters)
        got = method.function(deltas, weights=weights.reshape(-1, 1, 1), **more, **parameters)
        np.testing.assert_allclose(got.numpy(), wanted, atol=1e-7 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (6, 5), (2, 3, 4), (4, 3, 2, 2)])
def test_shape_and_dtype(method: Method, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    deltas = stack(shape=shape).to(dtype)
    result = fused(method, deltas, torch.ones(2, *(1,) * len(shape)))
    assert result.shape == shape
    assert result.dtype == dtype
    assert bool(result.isfinite().all())


def test_kernels_are_matrices_of_their_output_channels() -> None:
    for name in SPECTRAL:
        kernels = stack(shape=(4, 3, 2, 2))
        flat = fused(get(name), kernels.reshape(2, 4, 12), WEIGHTS)
        assert torch.equal(fused(get(name), kernels, WEIGHTS[..., None, None][:, :, :, :, 0]).reshape(4, 12), flat)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "knots"])
def test_what_is_no_matrix_is_averaged(name: str) -> None:
    vectors = stack(shape=(7,))
    torch.testing.assert_close(fused(get(name), vectors, WEIGHTS[..., 0]), (0.5 * vectors[0] + 1.25 * vectors[1]) / 2)


def test_half_precision_is_worked_on_in_float32(method: Method) -> None:
    deltas = stack().bfloat16()
    assert torch.equal(fused(method, deltas, WEIGHTS), fused(method, deltas.float(), WEIGHTS).bfloat16())


def test_inputs_are_not_changed_nor_shared(method: Method) -> None:
    deltas, weights = stack(), WEIGHTS.clone()
    before = deltas.clone(), weights.clone()
    result = fused(method, deltas, weights)
    result += 1
    assert torch.equal(before[0], deltas)
    assert torch.equal(before[1], weights)


def test_order_of_tasks_does_not_matter(method: Method) -> None:
    deltas, uniforms = stack(), torch.rand(TASKS, *SHAPE)
    turned = fused(method, deltas.flip(0), WEIGHTS.flip(0), uniforms.flip(0))
    torch.testing.assert_close(turned, fused(method, deltas, WEIGHTS, uniforms))


def test_determinism_and_the_global_random_state(method: Method) -> None:
    before = torch.get_rng_state()
    first = fused(method, stack(), WEIGHTS)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, fused(method, stack(), WEIGHTS))


def test_zero_updates_stay_zero(method: Method) -> None:
    assert not fused(method, torch.zeros(TASKS, *SHAPE), WEIGHTS).any()


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_homogeneity_is_as_promised(method: Method, factor: float) -> None:
    plain, scaled = fused(method, stack(), WEIGHTS), fused(method, stack(), WEIGHTS * factor)
    assert torch.allclose(scaled, factor * plain, rtol=1e-9, atol=1e-12) == method.homogeneous


def test_none_is_linear_or_works_entry_by_entry(method: Method) -> None:
    assert not method.linear
    assert method.granularity == "tensor"
    deltas = stack(shape=(6, 5))
    deltas[:, :, 2:] *= 50
    parts = [fused(method, d, WEIGHTS, torch.zeros_like(d)) for d in deltas.split([2, 3], dim=2)]
    assert not torch.allclose(torch.cat(parts, 1), fused(method, deltas, WEIGHTS, torch.zeros_like(deltas)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("svd", {"rank": 5}),
        ("tsv_m", {}),
        ("knots", {"density": 1.0}),
        ("model_stock", {}),
        ("slerp", {}),
        ("della", {"density": 1.0, "window": 0.0}),
    ],
)
def test_identity(name: str, parameters: dict[str, Any]) -> None:
    deltas = stack()[:1]
    torch.testing.assert_close(fused(get(name), deltas, torch.ones(1, 1, 1), **parameters), deltas[0])


def test_iso_keeps_directions_and_evens_out_strength() -> None:
    matrix = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(
        fused(get("iso_c"), matrix[None], torch.ones(1, 1, 1)), 2 * torch.eye(3, dtype=torch.float64)
    )


def test_gradients_reach_the_weights(method: Method) -> None:
    if method.name == "iso_cts":
        pytest.skip("what is left outside the common directions has no full rank, where an SVD has no derivative")
    weights = WEIGHTS.double().requires_grad_()
    fused(method, stack(), weights).square().sum().backward()
    assert weights.grad is not None
    assert bool(weights.grad.isfinite().all())
    assert bool((weights.grad != 0).any())


@pytest.mark.parametrize("name", SPECTRAL)
def test_low_rank_updates_bring_no_noise_from_their_null_space(name: str) -> None:
    """The result lies in the spans of the updates' columns and rows (a trim leaves the span of the rows)."""
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, 12, 2), (2, 2, 9)))
    result = fused(get(name), b @ a, WEIGHTS)
    sides = [(result, torch.cat(list(b), 1)), (result.T, torch.cat(list(a)).T)]
    for whole, basis in sides[: 1 if name == "knots" else 2]:
        q = torch.linalg.qr(basis).Q
        torch.testing.assert_close(q @ (q.T @ whole), whole)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "knots", "slerp"])
def test_weights_must_not_differ_within_a_matrix(name: str) -> None:
    with pytest.raises(FusionError, match=f"{name}: weights must not differ within a matrix"):
        fused(get(name), stack(), stack(3).abs())


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("svd", {"rank": 0}, "svd: rank must be in"),
        ("iso_cts", {"common": 0.0}, "iso_cts: common must be in"),
        ("knots", {"density": 20}, "knots: density must be in .* did you mean 0.20"),
        ("della", {"density": 0.0}, "della: density must be in"),
        ("della", {"window": -1.0}, "della: window must be in"),
        ("della", {"density": 0.9, "window": 0.4}, "della: probabilities must be in .*0.7 to 1.1"),
        ("breadcrumbs", {"outliers": 1.0}, "breadcrumbs: outliers must be in"),
        ("breadcrumbs", {"density": 0.9, "outliers": 0.2}, r"at most 1 together, got '0.9 \+ 0.2'"),
        ("consensus", {"share": -0.1}, "consensus: share must be in"),
        ("consensus", {"tasks": -1}, "consensus: tasks must be in"),
    ],
)
def test_parameters_out_of_range(name: str, parameters: dict[str, Any], message: str) -> None:
    method = get(name)
    given = {"uniforms": torch.zeros(2, *SHAPE)} if method.random else {}
    with pytest.raises(FusionError, match=message):
        method.function(stack(), weights=WEIGHTS, **given, **parameters)


def test_slerp_refuses_a_third_update_and_weights_that_cancel() -> None:
    with pytest.raises(FusionError, match="it takes two updates, got 3"):
        fused(get("slerp"), stack(tasks=3), torch.ones(3, 1, 1))
    for weights in ([1.0, -1.0], [0.0, 0.0], [2.0, -0.5]):
        with pytest.raises(FusionError, match="must not cancel"):
            fused(get("slerp"), stack(), torch.tensor(weights).reshape(2, 1, 1))


def test_slerp_in_one_line() -> None:
    deltas = stack()
    deltas[1] = -3 * deltas[0]
    torch.testing.assert_close(fused(get("slerp"), deltas, torch.ones(2, 1, 1)), -deltas[0])
    deltas[1] = 0
    torch.testing.assert_close(fused(get("slerp"), deltas, torch.ones(2, 1, 1)), deltas[0] / 2)


def test_docstring_says_what_the_house_asks(method: Method) -> None:
    doc = method.function.__doc__ or ""
    assert method.summary.endswith(".")
    assert method.choose
    assert method.reference.startswith("arXiv:")
    assert method.reference in doc
    assert "Args:" in doc
    assert ">>> " in doc
    assert ("Raises:" in doc) == (method.name != "model_stock")
