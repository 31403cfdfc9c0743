"""Which sets of tasks are fused."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest

from tangora.config.recipe import Recipe, SubsetConfig
from tangora.errors import RecipeError
from tangora.runs.checks import check_methods
from tangora.runs.subsets import choose_subsets, count_subsets

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


@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_sample_is_taken_from_the_subsets_in_their_order_without_making_them(size):
    every = list(itertools.combinations(TASKS, size))
    picked = sorted(random.Random(f"3:{size}").sample(range(len(every)), 4))
    assert choose_subsets(TASKS, SubsetConfig(sizes=[size], per_size=4), seed=3) == [every[i] for i in picked]


def test_a_sample_of_very_many_subsets_takes_no_memory():
    """Of 100 tasks there are 10^29 subsets of 50: more than a range has a length for."""
    names = [f"{i:03}" for i in range(100)]
    tracemalloc.start()
    try:
        chosen = choose_subsets(names, SubsetConfig(sizes=[10, 50], per_size=20), seed=0)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(set(chosen)) == 40
    assert {len(set(subset)) for subset in chosen} == {10, 50}
    assert all(list(subset) == sorted(subset) for subset in chosen)
    assert chosen[:20] == sorted(chosen[:20])


def test_the_number_of_subsets_is_counted_without_making_them():
    for config in (SubsetConfig(), SubsetConfig(sizes=[2, 3]), SubsetConfig(per_size=5), SubsetConfig(sizes=[7, 9])):
        assert count_subsets(7, config) == len(choose_subsets(TASKS, config, seed=0))


def test_more_subsets_than_a_run_can_fuse_are_refused_before_anything_is_loaded(short_recipe):
    raw = short_recipe.model_dump(mode="json")
    raw["tasks"] = [{**raw["tasks"][0], "name": f"t{i}"} for i in range(20)]
    raw["modes"] = {"lora": {}}
    with pytest.raises(RecipeError, match=r"20 tasks have 1,048,555 subsets .* per_size: 50 gives 871"):
        check_methods(Recipe.model_validate(raw))
    raw["fusion"] = {**raw["fusion"], "subsets": {"per_size": 50}}
    check_methods(Recipe.model_validate(raw))
