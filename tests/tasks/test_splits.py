from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangora.tasks.splits import cut, sample


@settings(max_examples=60, deadline=None)
@given(
    classes=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
    stratify=st.booleans(),
)
def test_cut_is_a_partition_in_order(classes, fraction, seed, stratify):
    n = len(classes)
    kept, held_out = cut(n, fraction, seed, classes if stratify else None)
    assert sorted(kept + held_out) == list(range(n))
    assert kept == sorted(kept)
    assert held_out == sorted(held_out)
    assert len(held_out) == min(max(1, round(fraction * n)), n - 1)


def test_cut_takes_each_class_in_proportion():
    classes = [0] * 60 + [1] * 30 + [2] * 10
    _, held_out = cut(100, 0.2, 0, classes)
    assert Counter(classes[i] for i in held_out) == {0: 12, 1: 6, 2: 2}


def test_cut_leaves_a_row_of_each_class_to_train():
    classes = [0] * 20 + [1]
    kept, _ = cut(21, 0.5, 0, classes)
    assert {classes[i] for i in kept} == {0, 1}


def test_the_seed_decides():
    assert cut(50, 0.3, 1) == cut(50, 0.3, 1)
    assert cut(50, 0.3, 1) != cut(50, 0.3, 2)
    assert sample(50, 9, 1) != sample(50, 9, 2)


def test_known_rows_on_every_machine():
    assert sample(12, 4, 0) == [1, 5, 8, 10]
    assert cut(12, 0.25, 0)[1] == [4, 5, 8]


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_sample_covers_every_class_where_there_is_room(count):
    classes = [0] * 40 + [1] * 5 + [2]
    rows = sample(46, count, 0, classes)
    assert len(rows) == count
    assert rows == sorted(set(rows))
    assert {classes[i] for i in rows} == {0, 1, 2}


def test_sample_of_more_than_there_are_is_everything():
    assert sample(4, 9, 0, "aabb") == [0, 1, 2, 3]
