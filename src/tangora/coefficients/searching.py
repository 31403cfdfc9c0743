"""`search`: coefficients for adapters, from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tangora.adapters.adapter import Adapter, load_beside
from tangora.coefficients.found import Found
from tangora.coefficients.pose import SearchContext, pose
from tangora.coefficients.requirements import refuse_unless_searchable
from tangora.config.fusion import FusionEntry, check_search
from tangora.errors import ArgumentError
from tangora.evaluation.candidates import Scoring
from tangora.evaluation.evaluator import Evaluator
from tangora.fusion.fusion import Fusion
from tangora.modes.contract import mode_of
from tangora.progress import Progress, shown
from tangora.support.validation import validate
from tangora.tasks.fitting import with_head

if TYPE_CHECKING:
    from tangora.tasks import Base, Task

__all__ = ["search"]


def search(
    adapters: Sequence[Adapter | str | os.PathLike[str]],
    base: Base,
    tasks: Sequence[Task],
    search: str = "learned",
    *,
    method: str = "task_arithmetic",
    parameters: dict[str, Any] | None = None,
    split: str = "validation",
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Found:
    """Find the best coefficients for fusing adapters, by a search on rows of their tasks.

    Args:
        adapters: adapters or their folders, one for each task. If each one names its task, their order is free;
            else give them in the order of the tasks.
        base: the adapters' base; restored afterwards.
        tasks: the search uses their rows.
        search: ``learned``, ``convex``, ``minimax``, ``adamerging``, ``samerging``, ``lorahub``, or a
            search from another package.
        method: the fusion method; see `tangora.coefficients.contract` for those that fit a search.
        parameters: of the method.
        split: the search uses rows of this split. Report no scores on the same rows.
        seed: of the choice of rows and of the search's random draws.
        batch_size: rows per forward pass.
        progress: shows the steps of the search; by default in a terminal or a notebook. False is silent.
        **settings: of the search, such as ``labels=32``.

    Returns:
        Coefficients, in the order of the adapters: ``tangora.fuse(adapters, method, found.weights)``.

    Raises:
        RecipeError: there is no such search, or a setting is unknown or out of range.
        ArgumentError: there is not one adapter for each task, or the search does not fit the method.
        FusionError: the adapters, or their modes, do not fit each other.
        DataError: a task has no such split.

    >>> from tangora.config.recipe import load_recipe
    >>> from tangora.tasks import load_base, load_task
    >>> recipe = load_recipe("recipe.yaml")
    >>> base = load_base(recipe.base)
    >>> tasks = [load_task(config, base, recipe.seed) for config in recipe.tasks]
    >>> found = search(["adapters/one", "adapters/two"], base, tasks, "lorahub", budget=3)
    >>> len(found.weights), found.steps, found.settings["split"]
    (2, 3, 'validation')
    """
    where = base.config.model, base.config.revision
    loaded = [a if isinstance(a, Adapter) else load_beside(a, *where) for a in adapters]
    names = _tasks_of(loaded, tasks)
    of_name = {task.name: task for task in tasks}
    loaded = [with_head(adapter, base, of_name[name]) for adapter, name in zip(loaded, names, strict=True)]
    raw = {"method": method, "parameters": parameters or {}, "search": {"name": search, **settings}}
    entry = validate(FusionEntry, raw, "tangora.search")
    assert entry.search is not None
    _check(entry, loaded, tasks)
    fusion = Fusion(loaded, seed=seed, names=names)
    context = SearchContext(
        base,
        {task.name: task for task in tasks},
        Scoring(Evaluator(base, tasks, batch_size=batch_size), seed),
        batch_size=batch_size,
    )
    with shown(progress) as listener:
        steps = _Steps(listener, f"search {search}")
        posed = pose(
            context,
            fusion,
            names,
            entry.search,
            method=method,
            parameters=entry.parameters,
            split=split,
            seed=seed,
            on_step=steps,
        )
        found = posed.solve()
        steps.end()
    return found


def _tasks_of(adapters: Sequence[Adapter], tasks: Sequence[Task]) -> list[str]:
    """Return the name of each adapter's task."""
    names = [task.name for task in tasks]
    if len(adapters) != len(names):
        what = f"{len(names)} tasks need {len(names)} adapters"
        raise ArgumentError(what, got=len(adapters), where="search.adapters", fix="give one adapter of each task")
    recorded = [str(adapter.metadata.task) for adapter in adapters]
    return recorded if sorted(recorded) == sorted(names) else names


def _check(entry: FusionEntry, adapters: Sequence[Adapter], tasks: Sequence[Task]) -> None:
    """Refuse adapters, tasks and a method that do not fit the search."""
    linear = {"these adapters": all(mode_of(adapter).linear_in_coefficients for adapter in adapters)}
    try:
        check_search(entry, linear, classes=all(task.form.logits_over == "classes" for task in tasks))
    except ValueError as cause:
        raise ArgumentError(str(cause), where="tangora.search") from None
    refuse_unless_searchable(entry, [name for name, is_linear in linear.items() if is_linear])


class _Steps:
    """Shows the steps of a search as one stage; its length is known from the first step on."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label, self._begun = progress, label, False

    def __call__(self, done: int, total: int, detail: str) -> None:
        if not self._begun:
            self._progress.begin(self._label, total)
            self._begun = True
        self._progress.update(done, detail)

    def end(self) -> None:
        """End the stage, if there was one."""
        if self._begun:
            self._progress.end()
