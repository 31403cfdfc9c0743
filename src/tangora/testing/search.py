"""`check_search`: the promises of `tangora.coefficients.contract.Search`, on a problem that it makes itself."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import one_hot

from tangora.coefficients.contract import Needs, Search, SearchSettings
from tangora.coefficients.found import DIGITS, Found
from tangora.coefficients.linear import LinearLogits
from tangora.coefficients.problem import Coefficients, Problem
from tangora.tangent.columns import Columns

__all__ = ["check_search"]

_TASKS, _SITES, _ROWS, _CLASSES = ("a", "b"), ("s0", "s1"), 12, 3


def check_search(search: Search, **settings: Any) -> None:
    """Check the promises of a search, with coefficients per task and, if its settings allow it, per task and site.

    Args:
        search: the one to check.
        **settings: keys of the search, to make it fast; necessary for those without a default.

    Raises:
        AssertionError: says which promise is broken.

    >>> from tangora.support.seams import SEARCHES
    >>> check_search(SEARCHES.get("convex"))
    """
    _check_declarations(search)
    chosen = _settings(search, settings)
    _check_problem(search, chosen, per_site=chosen.per_site)
    if "per" in search.settings.model_fields:
        other = "task" if chosen.per_site else "site"
        _check_problem(search, _settings(search, {**settings, "per": other}), per_site=not chosen.per_site)


def _check_declarations(search: Search) -> None:
    assert isinstance(search, Search), f"{search!r} lacks a name of tangora.coefficients.contract.Search"
    name = search.name
    assert name, "name must not be empty"
    views = {"loss", "logits", "columns"}
    assert search.needs in views, f"{name}: needs must be one of {sorted(views)}, got {search.needs!r}"
    for flag in ("labelled", "classes"):
        assert isinstance(getattr(search, flag), bool), f"{name}: {flag} must be True or False"
    fields = search.settings
    assert isinstance(fields, type), f"{name}: settings must be a class"
    assert issubclass(fields, SearchSettings), f"{name}: settings must be a subclass of SearchSettings"
    assert fields.model_config.get("frozen"), f"{name}: settings must be frozen"
    default = fields.model_fields["name"].default
    assert default == name, f"{name}: the default of settings.name must be {name!r}, got {default!r}"


def _settings(search: Search, given: dict[str, Any]) -> SearchSettings:
    made = search.settings(**given)
    again = search.settings.model_validate(json.loads(json.dumps(made.model_dump(mode="json"))))
    assert again == made, f"{search.name}: settings differ after a recipe is written and read, {again} from {made}"
    other = "no-such-search"
    try:
        search.settings(**{**given, "name": other})
    except ValueError:
        return made
    raise AssertionError(f"{search.name}: settings accept the name {other!r}; make it a Literal")


def _check_problem(search: Search, settings: SearchSettings, per_site: bool) -> None:
    label = f"{search.name} per {'site' if per_site else 'task'}"
    columns = _columns(per_site)
    problem = _problem(columns, search.needs, settings)
    with _global_states_kept(label):
        found = search(problem, settings)
    _check_found(found, problem, label, search.needs)
    again = search(_problem(_columns(per_site), search.needs, settings), settings)
    assert again.weights == found.weights, f"{label}: the same problem gives {found.weights} and then {again.weights}"
    if search.needs == "logits":  # both kinds of problem: with columns too, and without them
        linear = replace(problem, columns_of=lambda: columns)
        _check_found(search(linear, settings), linear, f"{label}, on columns", "columns")
    if not search.labelled:
        moved = [replace(c, labels=(c.labels + 1) % _CLASSES) for c in columns]
        blind = search(_problem(moved, search.needs, settings), settings)
        assert blind.weights == found.weights, f"{label}: other labels change the weights, but labelled is False"


def _check_found(found: Any, problem: Problem, label: str, needs: Needs) -> None:
    assert isinstance(found, Found), f"{label}: must return Found, got {type(found).__name__}"
    rows = found.weights if isinstance(found.weights, dict) else {"": found.weights}
    expected = list(problem.sites) if problem.sites else [""]
    assert sorted(rows) == sorted(expected), f"{label}: weights must be of {expected}, got {sorted(rows)}"
    for row in rows.values():
        assert isinstance(row, list), f"{label}: a row of weights must be a list, got {type(row).__name__}"
        assert len(row) == len(problem.tasks), f"{label}: one weight per task, got {row} for {problem.tasks}"
        assert all(type(w) is float and math.isfinite(w) for w in row), f"{label}: weights must be finite, got {row}"
        assert row == [round(w, DIGITS) for w in row], f"{label}: weights must have {DIGITS} decimals, got {row}"
    assert math.isfinite(found.loss), f"{label}: loss must be finite, got {found.loss}"
    assert math.isfinite(found.objective), f"{label}: objective must be finite, got {found.objective}"
    assert dict(found.rows) == problem.counts, f"{label}: rows must be {problem.counts}, got {dict(found.rows)}"
    assert "search" in found.settings, f"{label}: Found.settings must name the search"
    record = found.to_dict()
    assert json.loads(json.dumps(record)) == record, f"{label}: Found.settings must be plain values of JSON"
    if needs == "loss":
        stated = problem.loss(found.weights)
        same = math.isclose(found.loss, stated, rel_tol=1e-6, abs_tol=1e-9)
        assert same, f"{label}: the loss of the weights is {stated}, and {found.loss} is stated"


def _columns(per_site: bool) -> list[Columns]:
    """Return columns of two tasks: a task's own vector improves its logits, the other's makes them worse."""
    made = []
    for own, task in enumerate(_TASKS):
        draw = torch.Generator().manual_seed(own)
        labels = torch.arange(_ROWS) % _CLASSES
        shape = (len(_TASKS), *((len(_SITES),) if per_site else ()), _ROWS, _CLASSES)
        columns = torch.randn(shape, generator=draw)
        columns[own] += 2.0 * one_hot(labels, _CLASSES)
        origin, sites = torch.randn(_ROWS, _CLASSES, generator=draw), _SITES if per_site else ()
        examples = torch.arange(_ROWS)
        made.append(Columns(task, "validation", _TASKS, sites, origin, columns, labels, examples, "toy"))
    return made


def _problem(columns: Sequence[Columns], needs: Needs, settings: SearchSettings) -> Problem:
    """Return a problem with only the view that the search needs, so that any other is refused."""
    logits = LinearLogits(columns)

    def loss(weights: Coefficients) -> float:
        rows = [weights[site] for site in _SITES] if isinstance(weights, dict) else [weights]
        x = torch.tensor(rows, dtype=torch.float64).T.reshape(-1)
        return float(np.mean(logits.losses(x)))

    return Problem(
        _TASKS,
        {task: range(_ROWS) for task in _TASKS},
        seed=1,
        sites=_SITES if settings.per_site else (),
        loss_of=loss if needs == "loss" else None,
        logits_of=(lambda: logits) if needs == "logits" else None,
        columns_of=(lambda: columns) if needs == "columns" else None,
    )


@contextmanager
def _global_states_kept(label: str) -> Iterator[None]:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr, unused-ignore]
    yield
    after = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr, unused-ignore]
    assert torch.equal(before[0], after[0]), f"{label}: the global random state of torch has changed"
    assert before[1] == after[1], f"{label}: the global random state of NumPy has changed"
    assert before[2] == after[2], f"{label}: the global random state of Python has changed"
