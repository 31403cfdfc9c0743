"""The contract of searches: our own keep it, and broken ones are caught."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from pydantic import Field

from tangora.coefficients.contract import SearchSettings
from tangora.coefficients.found import Found
from tangora.coefficients.problem import Problem
from tangora.errors import FusionError, PluginError
from tangora.support.seams import SEARCHES
from tangora.testing import check_search


@pytest.mark.parametrize("name", list(SEARCHES.own))
def test_our_own_keep_it(name):
    search = SEARCHES.get(name)
    assert search.name == name
    check_search(search)


def test_there_are_seven():
    assert sorted(SEARCHES.own) == ["adamerging", "convex", "enmp", "learned", "lorahub", "minimax", "samerging"]


class ConstantSettings(SearchSettings):
    name: Literal["constant"] = "constant"
    weight: float = Field(default=0.25)


class Constant:
    """The simplest of all that keep the contract."""

    name = "constant"
    settings = ConstantSettings
    needs = "loss"
    labelled = True
    classes = False

    def __call__(self, problem, settings):
        weights = [settings.weight] * len(problem.tasks)
        loss = problem.loss(weights)
        return Found(weights, loss, loss, None, None, 1, 0.0, problem.counts, {"search": "constant"})


class TwoNames(Constant):
    class settings(SearchSettings):
        name: str = "constant"


class Thawed(Constant):
    class settings(ConstantSettings, frozen=False):
        pass


class Unsettled(Constant):
    settings = dict


class OtherNeeds(Constant):
    needs = "gradients"


class TooFew(Constant):
    def __call__(self, problem, settings):
        return replace(super().__call__(problem, settings), weights=[0.25])


class ManyDigits(Constant):
    def __call__(self, problem, settings):
        return super().__call__(problem, settings.model_copy(update={"weight": 1 / 3}))


class WrongLoss(Constant):
    def __call__(self, problem, settings):
        return replace(super().__call__(problem, settings), loss=0.0)


class Drawing(Constant):
    def __call__(self, problem, settings):
        return super().__call__(problem, settings.model_copy(update={"weight": round(float(np.random.rand()), 3)}))


class Drifting(Constant):
    calls = 0

    def __call__(self, problem, settings):
        type(self).calls += 1
        return super().__call__(problem, settings.model_copy(update={"weight": float(self.calls)}))


class Undeclared(Constant):
    def __call__(self, problem, settings):
        problem.columns()
        return super().__call__(problem, settings)


class Unwritable(Constant):
    def __call__(self, problem, settings):
        return replace(super().__call__(problem, settings), settings={"search": "constant", "when": (1, 2)})


class Peeking(type(SEARCHES.get("learned"))):
    """Looks at labels, and says that it does not."""

    labelled = False


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (TwoNames, "make it a Literal"),
        (Thawed, "settings must be frozen"),
        (Unsettled, "settings must be a subclass of SearchSettings"),
        (OtherNeeds, "needs must be one of"),
        (TooFew, "one weight per task"),
        (ManyDigits, "weights must have 6 decimals"),
        (WrongLoss, "the loss of the weights is"),
        (Drawing, "the global random state of NumPy has changed"),
        (Drifting, "the same problem gives"),
        (Unwritable, "must be plain values of JSON"),
        (Peeking, "other labels change the weights"),
    ],
)
def test_a_broken_one_is_caught(broken, message):
    check_search(Constant())
    with pytest.raises(AssertionError, match=message):
        check_search(broken())


def test_a_view_that_is_not_declared_is_refused():
    with pytest.raises(FusionError, match="this problem has no columns at problem"):
        check_search(Undeclared())


def test_one_that_lacks_something_is_refused_by_the_registry():
    with pytest.raises(PluginError, match="the search 'half' lacks classes, labelled, needs, settings"):
        SEARCHES.register("half", type("Half", (), {"name": "half", "__call__": lambda self: None})())
    with pytest.raises(PluginError, match="taken by a search of Tangora, got 'convex'"):
        SEARCHES.register("convex", Constant())


def test_a_problem_says_what_it_is():
    problem = Problem(("a", "b"), {"a": [3, 4], "b": [0]}, loss_of=lambda weights: sum(weights))
    assert (problem.per, problem.linear, problem.counts) == ("task", False, {"a": 2, "b": 1})
    assert problem.loss([0.5, 0.25]) == 0.75
    assert replace(problem, sites=("s",), columns_of=list).per == "site"
    with pytest.raises(FusionError, match="this problem has no logits"):
        problem.logits()


def test_a_recipe_with_searches_loads_no_torch():
    code = """
import sys
from tangora.config.recipe import FusionEntry
for search in ("convex", "learned", "minimax", "adamerging", "samerging", "lorahub"):
    FusionEntry.model_validate({"method": "task_arithmetic", "search": search})
assert not {"torch", "numpy", "scipy"} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
