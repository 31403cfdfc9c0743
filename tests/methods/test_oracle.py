"""Each method against its oracle, on inputs drawn by Hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from data_free_oracles import DATA_FREE_ORACLES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matrix_oracles import MATRIX_ORACLES
from oracles import ORACLES
from statistics_oracles import STATISTICS_ORACLES

from tangora.errors import ArgumentError
from tangora.methods import get, methods

OF_MATRICES = MATRIX_ORACLES | DATA_FREE_ORACLES

# Eighths: sums are exact, so that a zero ballot is zero in both, and equal magnitudes and zeros are common.
EIGHTHS = st.integers(-40, 40).map(lambda i: i / 8)
DENSITIES = st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.55, 0.7, 0.9, 1.0])


@st.composite
def cases(draw: st.DrawFn, tasks: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.just(tasks) if tasks else st.integers(1, 5), st.integers(1, 12)))
    deltas = draw(hnp.arrays(np.float64, shape, elements=EIGHTHS))
    rows = shape if draw(st.booleans()) else (shape[0], 1)
    weights = draw(hnp.arrays(np.float64, rows, elements=EIGHTHS))
    uniforms = draw(hnp.arrays(np.float64, shape, elements=st.integers(0, 99).map(lambda i: i / 100)))
    return deltas, weights, uniforms


def options_of(draw: st.DrawFn, name: str, tasks: int) -> dict[str, Any]:
    if name == "breadcrumbs":
        return {"bottom": draw(st.sampled_from([0.0, 0.1, 0.3, 0.55])), "top": draw(st.sampled_from([0.0, 0.15, 0.4]))}
    if name == "della":
        return draw(st.sampled_from([{"density": d, "window": w} for d, w in ((0.5, 0.2), (0.3, 0.6), (1.0, 0.0))]))
    if name == "slerp":
        return {"position": draw(st.sampled_from([0.0, 0.2, 0.5, 0.75, 1.0]))}
    if name == "consensus":
        share = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
        return {"agreement": draw(st.integers(0, tasks)), "share": share}
    return {"density": draw(DENSITIES)} if "density" in get(name).parameters else {}


def test_every_method_has_an_oracle() -> None:
    assert ORACLES.keys() | OF_MATRICES.keys() | STATISTICS_ORACLES.keys() == {
        m.name for m in methods().values() if m.function.__module__.startswith("tangora.")
    }


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_agrees_with_the_oracle(name: str, data: st.DataObject) -> None:
    method = get(name)
    deltas, weights, uniforms = data.draw(cases(method.tasks))
    options = options_of(data.draw, name, len(deltas))  # type: ignore[arg-type]
    spread = np.broadcast_to(weights, deltas.shape)
    if name == "della":
        uniforms = uniforms + 1 / 719  # never a probability itself, which two ways to compute it round differently
    arrays = options | ({"uniforms": uniforms} if method.random else {})
    tensors = options | ({"uniforms": torch.from_numpy(uniforms)} if method.random else {})
    if name == "average" and (spread.sum(0) == 0).any():
        with pytest.raises(ArgumentError, match="must not sum to zero"):
            method.function(torch.from_numpy(deltas), weights=torch.from_numpy(weights))
        return
    result = method.function(torch.from_numpy(deltas), weights=torch.from_numpy(weights), **tensors)
    # an angle near 0 or 180° is known to 1e-8 only
    tolerance = 1e-6 if name in ("slerp", "model_stock") else 1e-12
    expected = ORACLES[name](deltas, spread, **arrays)
    np.testing.assert_allclose(result.numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OF_MATRICES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_agrees_with_the_oracle_on_matrices(name: str, data: st.DataObject) -> None:
    oracle, choices = OF_MATRICES[name]
    tasks, out, inside, rank = (data.draw(st.integers(1, top)) for top in (4, 7, 6, 6))
    g = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    deltas = g.normal(size=(tasks, out, rank)) @ g.normal(size=(tasks, rank, inside))
    weights = g.uniform(0.2, 1.5, size=tasks) * g.choice([-1, 1], size=tasks)
    options = {key: data.draw(st.sampled_from(values)) for key, values in choices.items()}
    column = torch.from_numpy(weights).reshape(-1, 1, 1)
    result = get(name).function(torch.from_numpy(deltas), weights=column, **options)
    expected = oracle(deltas, weights, **options)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-7 * np.abs(deltas).max())


@pytest.mark.parametrize("name", STATISTICS_ORACLES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_agrees_with_the_oracle_given_statistics(name: str, data: st.DataObject) -> None:
    oracle, known, choices = STATISTICS_ORACLES[name]
    tasks, out, inside, rows = (data.draw(st.integers(1, top)) for top in (4, 5, 6, 12))
    g = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    deltas, samples = g.normal(size=(tasks, out, inside)), g.normal(size=(tasks, rows, inside))
    weights = g.uniform(0.2, 1.5, size=tasks) * g.choice([-1, 1], size=tasks)
    options = {key: data.draw(st.sampled_from(values)) for key, values in choices.items()}
    given_ = torch.from_numpy(known(deltas, samples))
    column = torch.from_numpy(weights).reshape(-1, 1, 1)
    result = get(name).function(torch.from_numpy(deltas), weights=column, statistics=given_, **options)
    expected = oracle(deltas, weights, samples, **options)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6, atol=1e-6)
