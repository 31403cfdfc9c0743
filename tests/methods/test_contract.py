"""The contract of `tangora.methods`, for every method of the registry."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tangora.errors import FusionError
from tangora.methods import Method, get, methods

BUILT_IN = ["average", "dare", "dare_ties", "magnitude_prune", "task_arithmetic", "ties", "ties_per_tensor"]
ELEMENTWISE = [get(name) for name in BUILT_IN if get(name).granularity == "element"]
WITH_DENSITY = [get(name) for name in BUILT_IN if "density" in get(name).parameters]
TASKS, SHAPE = 3, (6, 5)


def stack(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((TASKS, *shape), generator=generator, dtype=torch.float64).to(dtype)


def fused(method: Method, deltas: Tensor, weights: Tensor, uniforms: Tensor | None = None, **parameters: Any) -> Tensor:
    if method.random:
        if uniforms is None:
            uniforms = torch.rand(deltas.shape, generator=torch.Generator().manual_seed(7))
        parameters["uniforms"] = uniforms
    return method.function(deltas, weights=weights, **parameters)


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
    deltas = stack()[:1]
    parameters = {"density": 1.0} if "density" in method.parameters else {}
    result = fused(method, deltas, torch.ones(1, 1, 1), **parameters)
    assert result.untyped_storage().data_ptr() != deltas.untyped_storage().data_ptr()


def test_order_of_tasks_does_not_matter(method: Method) -> None:
    deltas, uniforms = stack(), torch.rand((TASKS, *SHAPE), generator=torch.Generator().manual_seed(3))
    expected = fused(method, deltas, WEIGHTS, uniforms)
    for order in itertools.permutations(range(TASKS)):
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
    deltas = stack()
    deltas[:, 3:] *= 100
    halves = torch.cat([fused(method, d, WEIGHTS, torch.zeros_like(d)) for d in deltas.split(3, dim=1)])
    whole = fused(method, deltas, WEIGHTS, torch.zeros_like(deltas))
    assert torch.equal(halves, whole) == (method.granularity == "element")


def test_layout_in_memory_does_not_matter(method: Method) -> None:
    deltas, uniforms = stack(), torch.rand(TASKS, *SHAPE)
    turned = fused(method, deltas.transpose(1, 2), WEIGHTS, uniforms.transpose(1, 2))
    assert torch.equal(turned.T, fused(method, deltas, WEIGHTS, uniforms))


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
    """One task, weight 1, nothing dropped: the update itself, bit for bit."""
    parameters = {"density": 1.0} if "density" in method.parameters else {}
    deltas = stack()[:1]
    assert torch.equal(fused(method, deltas, torch.ones(1, 1, 1), **parameters), deltas[0])


@pytest.mark.parametrize("factor", [2.0, 0.5, -4.0, 0.0])
def test_homogeneity_is_as_promised(method: Method, factor: float) -> None:
    if not method.homogeneous and factor == 0:
        with pytest.raises(FusionError, match="must not sum to zero"):
            fused(method, stack(), WEIGHTS * factor)
        return
    scaled = fused(method, stack(), WEIGHTS * factor)
    assert torch.equal(scaled, factor * fused(method, stack(), WEIGHTS)) == method.homogeneous


def test_linearity_is_as_promised(method: Method) -> None:
    """The engine takes the coefficients of a linear method from the identity matrix."""
    deltas, weights = stack(), WEIGHTS
    parameters = {"density": 0.5} if "density" in method.parameters else {}
    coefficients = fused(method, torch.eye(TASKS), weights.reshape(TASKS, 1), **parameters)
    mixed = torch.einsum("t,t...->...", coefficients, deltas)
    agrees = torch.allclose(mixed, fused(method, deltas, weights, **parameters), atol=1e-6)
    assert agrees == method.linear


def test_weights_broadcast(method: Method) -> None:
    """Per task, per task and row, per task and entry: only what they say counts, not how it is written."""
    deltas = stack()
    expected = fused(method, deltas, WEIGHTS.expand(TASKS, *SHAPE).contiguous())
    for weights in (WEIGHTS, WEIGHTS.expand(TASKS, *SHAPE), WEIGHTS.expand(TASKS, 1, SHAPE[1])):
        assert torch.equal(fused(method, deltas, weights), expected)


def test_weights_per_entry_are_used_per_entry(method: Method) -> None:
    deltas, rows = stack(), torch.arange(1.0, 7.0).reshape(1, 6, 1)
    varied = fused(method, deltas, WEIGHTS * rows)
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


@pytest.mark.parametrize("density", [0, -0.1, 1.5, 20, float("nan"), float("inf")])
@pytest.mark.parametrize("method", WITH_DENSITY, ids=lambda m: m.name)
def test_density_out_of_range(method: Method, density: float) -> None:
    with pytest.raises(FusionError, match=rf"{method.name}: density must be in \(0, 1\], got .* at fuse.density"):
        fused(method, stack(), WEIGHTS, density=density)


def test_docstring_says_what_the_house_asks(method: Method) -> None:
    doc = method.function.__doc__ or ""
    assert method.summary.endswith(".")
    assert method.choose
    assert method.reference.startswith("arXiv:")
    assert method.reference in doc
    assert "Args:" in doc
    assert ">>> " in doc
    assert ("Raises:" in doc) == (method.name != "task_arithmetic")


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
