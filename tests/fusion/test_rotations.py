"""Methods that are applied in a basis of the outputs: the same result, from small matrices, as factors."""

from dataclasses import replace

import pytest
import torch

from tangora.adapters.adapter import Adapter
from tangora.fusion.fusion import fuse
from tangora.methods import get, methods
from tangora.testing import check_method
from tangora.updates.task_vector import LowRank

ROTATED = [name for name, method in methods().items() if method.rotates_outputs]


def low_rank(seed: int, rank: int = 3, out: int = 24, inside: int = 10, scaling: float = 0.5) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    b, a = torch.randn(out, rank, generator=generator), torch.randn(rank, inside, generator=generator)
    return LowRank(b.double(), a.double(), scaling)


CASES = {
    "ranks of their own": [{"x": low_rank(1)}, {"x": low_rank(2, 5)}, {"x": low_rank(3, 1)}],
    "a task without it": [{"x": low_rank(1)}, {}, {"x": low_rank(3)}],
    "one B": [{"x": low_rank(1)}, {"x": LowRank(low_rank(1).b, low_rank(2).a, 2.0)}],
    "one that changes nothing": [{"x": low_rank(1)}, {"x": LowRank(torch.zeros(24, 3).double(), low_rank(2).a)}],
    "nothing changed": [{"x": LowRank(torch.zeros(24, 3).double(), low_rank(i).a)} for i in (1, 2)],
    "inputs that two tasks span": [{"x": low_rank(1, 5)}, {}, {"x": low_rank(2, 5)}],
    "as many ranks as outputs": [{"x": low_rank(1, 12)}, {"x": low_rank(2, 12)}],
}


def test_there_are_some():
    assert {"knots", "tsv_m", "iso_c"} <= {*ROTATED}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ROTATED)
def test_the_result_is_that_of_dense_tensors(name, case):
    adapters, method = [Adapter(dict(one)) for one in CASES[case]], get(name)
    fused = fuse(adapters, name, weights=[0.5, 1.0, 1.5][: len(adapters)]).updates["x"]
    deltas = [one["x"].dense() if "x" in one else torch.zeros(24, 10).double() for one in CASES[case]]
    weights = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)[: len(adapters), None, None]
    torch.testing.assert_close(fused.dense(), method(torch.stack(deltas), weights=weights), rtol=1e-9, atol=1e-9)
    if case != "as many ranks as outputs":
        dense = fused.dense()
        assert fused.factors().rank == max(1, int(torch.linalg.matrix_rank(dense))) <= min(dense.shape)


def test_half_precision_does_not_overflow():
    large = [
        LowRank((30 * low_rank(i, 8, 512, 256).b).half(), (30 * low_rank(i, 8, 512, 256).a).half()) for i in (1, 2)
    ]
    for name in ROTATED:
        fused = fuse([Adapter({"x": update}) for update in large], name).updates["x"]
        assert fused.dense().isfinite().all()
        assert fused.factors().rank == 16


def test_a_promise_that_does_not_hold_is_found():
    with pytest.raises(AssertionError, match="rotates_outputs=True, but it does not"):
        check_method(replace(get("ties_per_tensor"), rotates_outputs=True))
