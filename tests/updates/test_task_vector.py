from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tangora.errors import ArgumentError, FusionError
from tangora.updates import sharing
from tangora.updates import update as updates
from tangora.updates.task_vector import Dense, LowRank, TaskVector, combine

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))
SCALES = st.floats(-3, 3, allow_nan=False).filter(lambda x: abs(x) > 1e-3)


def low_rank(seed: int, out: int, inside: int, rank: int, scaling: float = 1.0) -> LowRank:
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(out, rank, generator=g), torch.randn(rank, inside, generator=g), scaling)


def exact(update: LowRank | Dense) -> torch.Tensor:
    """What the factors say, in float64."""
    if isinstance(update, Dense):
        return update.weight.double()
    return (update.b.double() @ update.a.double()) * update.scaling


def close(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Up to float32's rounding: ten times by 6e-8 of what is added up, here eight products at most.

    With normal draws and scales up to 9 they are under 100 together, and 6e-5 is what rounding can make.
    """
    return torch.allclose(x.double(), y.double(), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 4), st.integers(1, 4), SCALES, SCALES, SCALES)
def test_algebra_agrees_with_dense(shape, r1, r2, s1, s2, number):
    x, y = low_rank(1, *shape, r1, s1), low_rank(2, *shape, r2, s2)
    dx, dy = exact(x), exact(y)
    assert close((x + y).dense(), dx + dy)
    assert close((x - y).dense(), dx - dy)
    assert close((x * number).dense(), dx * number)
    assert close((number * x / 2).dense(), dx * number / 2)
    assert close((-x).dense(), -dx)
    assert x.norm() == pytest.approx(float(dx.norm()), rel=1e-5)
    assert x.dot(y) == pytest.approx(float((dx * dy).sum()), rel=1e-4, abs=1e-4)
    dense = Dense(y.dense())
    assert x.dot(dense) == pytest.approx(x.dot(y), rel=1e-4, abs=1e-4)
    assert dense.dot(x) == pytest.approx(x.dot(y), rel=1e-4, abs=1e-4)
    assert isinstance(x + dense, Dense)
    assert close((x + dense).dense(), dx + dy)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 5), st.integers(1, 5), SCALES)
def test_compress_error_is_eckart_youngs(shape, rank, target, scaling):
    update = low_rank(3, *shape, rank, scaling)
    smaller, error = update.compress(target)
    s = torch.linalg.svdvals(update.dense().double())
    assert error == pytest.approx(float(s[target:].norm() / s.norm()), abs=1e-5)
    assert smaller.rank <= target
    actual = float((smaller.dense() - update.dense()).double().norm() / s.norm())
    assert actual == pytest.approx(error, abs=1e-5)
    dense, dense_error = Dense(update.dense()).compress(target)
    assert dense_error == pytest.approx(error, abs=1e-5)
    assert close(dense.dense(), smaller.dense())


def test_equal_a_keeps_the_rank_and_different_a_adds_up():
    x, y = low_rank(1, 5, 6, 2, 2.0), low_rank(2, 5, 6, 2, 2.0)
    shared = LowRank(y.b, x.a.clone(), 2.0)
    assert (x + y).rank == 4
    assert (x + shared).rank == 2
    assert torch.equal((x + shared).a, x.a)
    assert (x + shared).scaling == 2.0
    assert combine([x, y, shared], [1.0, 0.5, 2.0]).rank == 4
    assert close(combine([x, y, shared], [1.0, 0.5, 2.0]).dense(), x.dense() + y.dense() / 2 + 2 * shared.dense())


def test_equal_b_keeps_the_rank_even_with_different_coefficients():
    x, y, z = low_rank(1, 5, 6, 2), low_rank(2, 5, 6, 2), low_rank(3, 5, 6, 2)
    same_b = [x, LowRank(x.b.clone(), y.a), LowRank(x.b.clone(), z.a, 3.0)]
    total = combine(same_b, [0.3, -0.5, 2.0])
    assert total.rank == 2
    assert close(total.dense(), 0.3 * x.dense() - 0.5 * (x.b @ y.a) + 6 * (x.b @ z.a))


def test_difference_of_equals_is_exactly_zero():
    x = low_rank(1, 4, 3, 2)
    assert (x - x).norm() == 0.0
    assert not (x - x).dense().any()


def test_zero_coefficients_leave_no_trace():
    x, y = low_rank(1, 4, 3, 2), low_rank(2, 4, 3, 2)
    assert combine([x, y], [1.0, 0.0]) is x
    nothing = combine([x, y], [0.0, 0.0])
    assert isinstance(nothing, LowRank)
    assert nothing.rank == 2
    assert nothing.norm() == 0.0
    assert not combine([Dense(torch.ones(2))], [0.0]).dense().any()


def test_nothing_changes_its_operands():
    x, y = low_rank(1, 4, 3, 2, 2.0), LowRank(torch.ones(4, 2), low_rank(1, 4, 3, 2).a, 3.0)
    before = [t.clone() for t in (x.b, x.a, y.b, y.a)]
    _ = (x + y, x - y, x * 2, x.compress(1), x.dot(y), combine([x, y, x], [1.0, 2.0, 3.0]))
    assert all(torch.equal(t, old) for t, old in zip((x.b, x.a, y.b, y.a), before, strict=True))


def test_compress_returns_itself_when_small_enough():
    x = low_rank(1, 4, 3, 2)
    assert x.compress(2) == (x, 0.0)
    zero = LowRank(torch.zeros(4, 3), torch.zeros(3, 5)).compress(1)
    assert zero[0].rank == 1
    assert zero[1] == 0.0


def test_low_rank_of_a_dense_matrix_has_its_numerical_rank():
    x = low_rank(1, 12, 9, 3, 0.01)
    found = Dense(x.dense()).low_rank()
    assert found.rank == 3
    assert torch.allclose(found.dense(), x.dense(), atol=1e-7)
    full = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert Dense(full).low_rank().rank == 4
    assert Dense(torch.zeros(5, 4)).low_rank().rank == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRank(torch.ones(3, 2), torch.ones(3, 4)), r"b \(3, 2\), a \(3, 4\)"),
        (lambda: LowRank(torch.ones(3), torch.ones(3, 4)), "factors must be"),
        (lambda: low_rank(1, 3, 4, 2) + low_rank(1, 3, 5, 2), r"one shape, got \[\(3, 4\), \(3, 5\)\]"),
        (lambda: low_rank(1, 3, 4, 2).dot(low_rank(1, 4, 3, 2)), "one shape"),
        (lambda: Dense(torch.ones(3)).dot(Dense(torch.ones(4))), "one shape"),
        (lambda: low_rank(1, 3, 4, 2).compress(0), "rank must be at least 1, got 0"),
        (lambda: Dense(torch.ones(3, 3, 3)).compress(1), "only a matrix"),
        (lambda: combine([], []), "one coefficient per update"),
        (lambda: combine([low_rank(1, 3, 4, 2)], [1.0, 2.0]), "1 updates, 2 coefficients"),
    ],
)
def test_bad_input(make, message):
    error = FusionError if "one shape" in message else ArgumentError
    with pytest.raises(error, match=message):
        make()


def vectors() -> tuple[TaskVector, TaskVector]:
    x = TaskVector({"one": low_rank(1, 4, 3, 2), "two": low_rank(2, 3, 5, 1, 2.0)})
    return x, TaskVector({"two": low_rank(3, 3, 5, 2), "three": Dense(torch.ones(4))})


def flat(vector: TaskVector) -> torch.Tensor:
    shapes = {"one": 12, "two": 15, "three": 4}
    dense = {site: exact(update) for site, update in vector.items()}
    return torch.cat([dense[k].flatten() if k in dense else torch.zeros(n) for k, n in shapes.items()])


def test_a_task_vector_is_a_vector_over_all_sites():
    x, y = vectors()
    assert close(flat(x + y), flat(x) + flat(y))
    assert close(flat(2 * x - y / 4), 2 * flat(x) - flat(y) / 4)
    assert close(flat(-x), -flat(x))
    assert x.norm() == pytest.approx(float(flat(x).norm()))
    assert x.dot(y) == pytest.approx(float(flat(x) @ flat(y)))
    assert x.cosine(y) == pytest.approx(float(flat(x) @ flat(y) / flat(x).norm() / flat(y).norm()))
    assert x.cosine(x) == pytest.approx(1.0)
    assert x.cosine(x * 0.0) == 0.0
    assert list(x + y) == ["one", "two", "three"]
    assert len(x) == 2
    assert "2 sites" in repr(x)


def test_per_site_coefficients():
    x, y = vectors()
    fused = TaskVector.combination([x, y], {"one": [2.0, 9.0], "two": [0.0, 1.0], "three": [9.0, -1.0]})
    assert close(fused["one"].dense(), 2 * x["one"].dense())
    assert fused["two"] is y["two"]
    assert close(fused["three"].dense(), -torch.ones(4))


def test_a_wrong_shape_names_its_site():
    with pytest.raises(FusionError, match="at two"):
        _ = TaskVector({"two": low_rank(1, 3, 4, 1)}) + vectors()[0]


def test_a_task_vector_cannot_be_changed():
    source = {"one": low_rank(1, 4, 3, 2)}
    vector = TaskVector(source)
    source["two"] = low_rank(1, 4, 3, 2)
    assert list(vector) == ["one"]
    with pytest.raises(TypeError):
        vector["two"] = low_rank(1, 4, 3, 2)  # type: ignore[index]


def test_compress_over_all_sites_has_the_error_of_the_whole():
    x = TaskVector({"one": low_rank(1, 6, 7, 3), "two": low_rank(2, 5, 5, 4, 0.1)})
    smaller, error = x.compress(2)
    difference = math.sqrt(sum(float((x[s].dense() - smaller[s].dense()).double().norm()) ** 2 for s in x))
    assert error == pytest.approx(difference / x.norm(), rel=1e-4)
    _, errors = x.compress_by_site(2)
    assert set(errors) == {"one", "two"}
    assert x.compress(4)[1] == 0.0


def test_hundreds_of_terms_are_not_compared_with_each_other(monkeypatch):
    compared = []
    monkeypatch.setattr(sharing, "_equal", lambda x, y: compared.append(1) or torch.equal(x, y))
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    shared = draw(2, 5)
    terms = [updates.LowRank(draw(6, 2), shared.clone() if i % 2 else draw(2, 5)) for i in range(200)]
    total = updates.combine(terms, [1.0] * len(terms))
    assert total.rank == 100 * 2 + 2
    assert torch.allclose(total.dense(), sum(term.dense() for term in terms), rtol=0, atol=1e-10)
    assert len(compared) == 99


def test_a_factor_of_one_column_may_have_any_strides():
    column = LowRank(torch.ones(1, 8).T, torch.ones(1, 4))
    assert (column + column).rank == 1
    cut, _ = Dense(torch.randn(64, 32, generator=torch.Generator().manual_seed(0))).compress(1)
    assert torch.allclose((cut + cut).dense(), 2 * cut.dense())
