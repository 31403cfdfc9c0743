"""Which sets of tasks are fused."""

from __future__ import annotations

import itertools

from tangora.config.recipe import SubsetConfig
from tangora.runs.subsets import choose_subsets

TASKS = list("abcdefg")


def test_all_subsets_of_seven_are_120():
    every = choose_subsets(TASKS, SubsetConfig(), seed=0)
    expected = [s for size in range(2, 8) for s in itertools.combinations(TASKS, size)]
    assert every == expected
    assert len(every) == 120


def test_a_sample_is_seeded_ordered_and_distinct():
    config = SubsetConfig(sizes=[3], per_size=5)
    sample = choose_subsets(TASKS, config, seed=1)
    assert sample == choose_subsets(TASKS, config, seed=1)
    assert sample != choose_subsets(TASKS, config, seed=2)
    assert len(set(sample)) == 5
    assert all(list(s) == sorted(s) for s in sample)


def test_a_sample_does_not_depend_on_the_other_sizes():
    alone = choose_subsets(TASKS, SubsetConfig(sizes=[3], per_size=5), seed=1)
    among = choose_subsets(TASKS, SubsetConfig(sizes=[7, 3, 2], per_size=5), seed=1)
    assert [s for s in among if len(s) == 3] == alone
    assert among[-1] == tuple(TASKS)


def test_fewer_subsets_than_asked_for_are_all_taken():
    assert len(choose_subsets(TASKS, SubsetConfig(sizes=[7], per_size=5), seed=0)) == 1
