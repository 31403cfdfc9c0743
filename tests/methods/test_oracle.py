"""Each method against its oracle, on inputs drawn by Hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import ORACLES

from tangora.errors import FusionError
from tangora.methods import get, methods

# Eighths: sums are exact, so that a zero ballot is zero in both, and equal magnitudes and zeros are common.
EIGHTHS = st.integers(-40, 40).map(lambda i: i / 8)
DENSITIES = st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.55, 0.7, 0.9, 1.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 12)))
    deltas = draw(hnp.arrays(np.float64, shape, elements=EIGHTHS))
    rows = shape if draw(st.booleans()) else (shape[0], 1)
    weights = draw(hnp.arrays(np.float64, rows, elements=EIGHTHS))
    uniforms = draw(hnp.arrays(np.float64, shape, elements=st.integers(0, 99).map(lambda i: i / 100)))
    return deltas, weights, uniforms, draw(DENSITIES)


def test_every_method_has_an_oracle() -> None:
    assert set(ORACLES) == {m.name for m in methods().values() if m.function.__module__.startswith("tangora.")}


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_agrees_with_the_oracle(name: str, case: tuple[np.ndarray, np.ndarray, np.ndarray, float]) -> None:
    deltas, weights, uniforms, density = case
    method = get(name)
    options: dict[str, Any] = {"density": density} if "density" in method.parameters else {}
    spread = np.broadcast_to(weights, deltas.shape)
    arrays = options | ({"uniforms": uniforms} if method.random else {})
    tensors = options | ({"uniforms": torch.from_numpy(uniforms)} if method.random else {})
    if name == "average" and (spread.sum(0) == 0).any():
        with pytest.raises(FusionError, match="must not sum to zero"):
            method.function(torch.from_numpy(deltas), weights=torch.from_numpy(weights))
        return
    result = method.function(torch.from_numpy(deltas), weights=torch.from_numpy(weights), **tensors)
    np.testing.assert_allclose(result.numpy(), ORACLES[name](deltas, spread, **arrays), rtol=1e-12, atol=1e-12)
