"""Which rows a search looks at."""

from __future__ import annotations

from collections import Counter

from tangora.coefficients.rows import pick


def test_classes_have_their_share():
    targets = ["common"] * 90 + ["rare"] * 30
    counts = Counter(targets[i] for i in pick(targets, 16, 0, "task"))
    assert counts == {"common": 12, "rare": 4}


def test_few_labels_of_many_classes_are_of_different_classes():
    targets = [i % 77 for i in range(154)]
    assert max(Counter(targets[i] for i in pick(targets, 8, 0, "task")).values()) == 1
    assert len({targets[i] for i in pick(targets, 77, 0, "task")}) == 77


def test_fewer_rows_are_contained_in_more():
    targets = [i % 5 for i in range(60)]
    eight, many = pick(targets, 8, 0, "task"), pick(targets, 32, 0, "task")
    assert many[:8] == eight
    assert sorted(pick(targets, None, 0, "task")) == list(range(60)) == sorted(pick(targets, 99, 0, "task"))


def test_the_seed_and_the_task_decide():
    targets = [i % 5 for i in range(60)]
    assert pick(targets, 8, 0, "task") == pick(targets, 8, 0, "task")
    assert pick(targets, 8, 0, "task") != pick(targets, 8, 1, "task")
    assert pick(targets, 8, 0, "task") != pick(targets, 8, 0, "other")
