"""`search`: coefficients for adapters from Python, the adapter that is fused with them, and what it keeps.

adapters, base, tasks ─▶ one λ, a search ─▶ coefficients     on the choosing rows
                         base, adapters, one λ, fused        on the scoring rows ─▶ SearchResult
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.adapters.adapter import Adapter
from tangora.coefficients.choosing import GRID_SEARCH, Chooser
from tangora.coefficients.one_weight import GRID
from tangora.coefficients.pairing import AdapterLike, Member, members_of
from tangora.coefficients.requirements import refuse_unless_searchable
from tangora.coefficients.result import BASE, FUSED, ONE, SearchResult, verdicts
from tangora.coefficients.rows import pick
from tangora.config.fusion import FusionEntry, check_search
from tangora.errors import ArgumentError, DataError
from tangora.evaluation.comparison import Comparison
from tangora.evaluation.evaluator import Evaluator, Result, ScoreStore, scoring_key
from tangora.fusion.fusion import Fusion
from tangora.modes.contract import mode_of
from tangora.modes.given import given_expert, read_given
from tangora.progress import Progress, shown
from tangora.support.validation import did_you_mean, validate
from tangora.tasks.values import only

if TYPE_CHECKING:
    from tangora.coefficients.choosing import Chosen
    from tangora.tasks import Base, Task

__all__ = ["search"]


def search(
    adapters: Sequence[AdapterLike] | Mapping[str, AdapterLike],
    base: Base,
    tasks: Sequence[Task],
    search: str | None = None,
    *,
    method: str = "task_arithmetic",
    parameters: dict[str, Any] | None = None,
    weights: Sequence[float] = GRID,
    labels: int | None = None,
    split: str = "validation",
    scored: str | None = "test",
    rank: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    same_base: bool = False,
    scratch: Path | None = None,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> SearchResult:
    """Find coefficients for fusing adapters on rows of their tasks, fuse them, and measure what the result keeps.

    Without a search, the most robust one for the rows is used. One λ for all adapters is always chosen from a grid. If
    there are at least 32 choosing rows of each task, coefficients for each adapter are looked for too (`convex` if the
    logits are linear in them, else `learned`), and used only if they keep more of the adapters on the choosing rows
    than one λ does. With fewer rows, a score is known to no more than ±0.17, and one number is harder to fit to chance.

    Args:
        adapters: adapters, or what `tangora.load` reads: of any rank, layers and naming. By name; or in any order if
            they record their tasks, else in the order of the tasks. One without rows of its task is weighed by what it
            does for the others; a task without an adapter is one that the others have to do.
        base: the adapters' base; restored afterwards.
        tasks: with rows of ``split`` and ``scored``.
        search: ``grid``, ``learned``, ``convex``, ``minimax``, ``adamerging``, ``samerging``, ``lorahub``, ``enmp``,
            or a search from another package; by default see above.
        method: the fusion method; see `tangora.coefficients.contract` for those that fit a search.
        parameters: of the method.
        weights: the grid of λ.
        labels: the most choosing rows of each task, picked by class; by default all.
        split: coefficients are chosen on rows of this split.
        scored: all models are scored on rows of this split, if every task has it; None to score nothing.
        rank: the largest rank of the fused adapter at a site; by default it is exact.
        seed: of the choice of rows, of random methods, of the search's random draws, and of the bootstrap.
        batch_size: rows per forward pass.
        same_base: accept adapters that were made for another name, or other weights, of the base.
        scratch: a folder for scores and the search's result, from which a stopped call goes on.
        progress: shows the steps; by default in a terminal or a notebook. False is silent.
        **settings: of the search, such as ``steps=30``.

    Returns:
        Coefficients in the order of the adapters, the fused adapter (``result.adapter.save("fused")``) and the table.

    Raises:
        RecipeError: there is no such search, or a setting is unknown or out of range.
        ArgumentError: there is nothing to search for, the search does not fit the method, or ``split`` is ``scored``.
        FusionError: the adapters, or their modes, do not fit each other.
        ModelError: an adapter does not fit the base; the message has both names.
        DataError: a task has no such split.

    >>> from tangora.config.recipe import load_recipe
    >>> from tangora.tasks import load_base, load_task
    >>> recipe = load_recipe("recipe.yaml")
    >>> base = load_base(recipe.base)
    >>> tasks = [load_task(config, base, recipe.seed) for config in recipe.tasks]
    >>> found = search(["adapters/one", "adapters/two"], base, tasks, "lorahub", budget=3)
    >>> len(found.weights), found.steps, found.settings["split"]
    (2, 3, 'validation')
    >>> found.table.models
    ['base alone', 'one', 'two', 'one λ for all', 'fused']
    """
    entry = _entry(search, method, parameters, settings)
    sources = adapters if isinstance(adapters, Mapping) else [read_given(one, base) for one in adapters]
    members = _members(adapters, sources, tasks)
    experts = [given_expert(m.source, base, m.task, same_base=same_base, name=m.name) for m in members]
    _check(entry, experts, tasks)
    scored = _splits(tasks, split, scored)
    fusion = Fusion(experts, seed=seed, names=[member.name for member in members])
    store = ScoreStore() if scratch is None else ScoreStore(scratch / "scores.jsonl")
    narrowed = [only(t, split, pick(t.splits[split].targets, labels, seed, t.name)) for t in tasks]
    with shown(progress) as listener:
        chooser = Chooser(base, narrowed, members, fusion, entry, split, seed, batch_size, store, scratch, listener)
        one, chosen = chooser.choose(weights, named=search is not None)
        made = fusion.merge(method, chosen.found.weights, entry.parameters, rank)
        single = None if chosen.name == GRID_SEARCH else fusion.merge(method, one.weights, entry.parameters, rank)
        table = None
        if scored is not None:
            evaluator = Evaluator(base, tasks, batch_size=batch_size, store=store)
            models = {BASE: None, **dict(zip(fusion.names, experts, strict=True))}
            models |= {ONE: single} if single is not None else {}
            results = _scores({**models, FUSED: made}, evaluator, [task.name for task in tasks], scored, listener)
            owned = {member.name: member.name for member in members if member.task is not None}
            table = Comparison(results, {task.name: task for task in tasks}, owned, scored, seed=seed, base=BASE)
    assert isinstance(one.weights, list)
    return _result(chosen, one.weights[0], labels, made, members, table)


def _entry(
    search: str | None, method: str, parameters: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> FusionEntry:
    """Return method and search as an entry of a recipe; without a search if it is a grid, or by default."""
    raw: dict[str, Any] = {"method": method, "parameters": dict(parameters or {})}
    if odd := [name for name, value in raw["parameters"].items() if isinstance(value, list)]:
        fix = "give one value; tangora run compares several"
        raise ArgumentError("a parameter has one value here", got=raw["parameters"][odd[0]], where=odd[0], fix=fix)
    if search is None or search == GRID_SEARCH:
        if settings:
            fix = "leave it out" if search else "name the search, or leave it out"
            where = f"search {search or 'by default'}"
            raise ArgumentError("a grid has no such setting", got=next(iter(settings)), where=where, fix=fix)
        return validate(FusionEntry, raw, "tangora.search")
    from tangora.support.seams import SEARCHES  # deferred: with the searches' settings

    if search not in SEARCHES:
        fix = did_you_mean(search, [GRID_SEARCH, *SEARCHES])
        raise ArgumentError("no such search", got=search, where="search", fix=fix)
    return validate(FusionEntry, {**raw, "search": {"name": search, **settings}}, "tangora.search")


def _members(
    adapters: Sequence[AdapterLike] | Mapping[str, AdapterLike],
    sources: Sequence[Adapter] | Mapping[str, AdapterLike],
    tasks: Sequence[Task],
) -> list[Member]:
    """Return the adapters, read if they are in order, with their tasks."""
    if isinstance(sources, Mapping) or isinstance(adapters, Mapping):
        return members_of(adapters, tasks, [])
    found = members_of(adapters, tasks, [one.metadata.task for one in sources])
    return [Member(member.name, one, member.task) for member, one in zip(found, sources, strict=True)]


def _check(entry: FusionEntry, adapters: Sequence[Adapter], tasks: Sequence[Task]) -> None:
    """Refuse adapters, tasks and a method that do not fit the search."""
    linear = {"these adapters": all(mode_of(adapter).linear_in_coefficients for adapter in adapters)}
    try:
        check_search(entry, linear, classes=all(task.form.logits_over == "classes" for task in tasks))
    except ValueError as cause:
        raise ArgumentError(str(cause), where="tangora.search") from None
    refuse_unless_searchable(entry, [name for name, is_linear in linear.items() if is_linear])


def _splits(tasks: Sequence[Task], split: str, scored: str | None) -> str | None:
    """Return the split to score on: None if a task has none.

    Raises:
        ArgumentError: coefficients would be chosen on the rows that are scored.
        DataError: a task has no rows to choose on.
    """
    for task in tasks:
        if split not in task.splits or not len(task.splits[split]):
            fix = did_you_mean(split, list(task.splits))
            raise DataError("the split is missing", got=split, where=f"task {task.name}", fix=fix)
    if scored == split:
        fix = "score on other rows, or on none: scored=None"
        raise ArgumentError(
            "coefficients would be chosen on the rows that are scored", got=split, where="scored", fix=fix
        )
    return scored if scored is not None and all(scored in task.splits for task in tasks) else None


def _scores(
    models: Mapping[str, Adapter | None], evaluator: Evaluator, names: Sequence[str], split: str, listener: Progress
) -> dict[str, dict[str, Result]]:
    """Return model -> task -> result; each task is scored by itself, so that progress is shown."""
    listener.begin(f"score on {split} rows", len(models) * len(names))
    results: dict[str, dict[str, Result]] = {}
    for label, adapter in models.items():
        key, results[label] = "zero_shot" if adapter is None else scoring_key(adapter), {}
        for name in names:
            results[label] |= evaluator.evaluate(key, lambda adapter=adapter: adapter, [name], split)  # type: ignore[misc]
            listener.advance(detail=f"{label} on {name}")
    listener.end()
    return results


def _result(
    chosen: Chosen, one: float, labels: int | None, made: Adapter, members: Sequence[Member], table: Comparison | None
) -> SearchResult:
    """Put the result together, with the search and the scores in the adapter's record."""
    found, names = chosen.found, [member.name for member in members]
    settings = {**found.settings, "labels": labels}
    record = {**found.to_dict(), "labels": labels, "reason": chosen.reason}
    adapter, notes = made.with_selection(record), list[str]()
    if table is not None:
        adapter = adapter.with_scores(**_recorded(table, found.rows))
        notes = list(verdicts(table, [name for name in names if name in table.results], one))
    values = {**vars(found), "settings": settings}
    about: dict[str, Any] = {"names": names, "search": chosen.name, "reason": chosen.reason}
    return SearchResult(**values, **about, adapter=adapter, one=one, table=table, notes=notes)


def _recorded(table: Comparison, chosen_on: Mapping[str, int]) -> dict[str, Any]:
    """Return what ``tangora.json`` records of the scores: the fused adapter's, and beside them those of the others."""
    counts = sorted(set(table.rows.values()))
    cells = table[FUSED]
    return {
        "scores": {name: cell.score for name, cell in cells.items()},
        "split": table.split,
        "rows": counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "selection": f"coefficients chosen on other rows: {', '.join(f'{n} of {t}' for t, n in chosen_on.items())}",
        "intervals": {name: [cell.low, cell.high] for name, cell in cells.items()},
        "kept": {name: cell.kept for name, cell in cells.items() if cell.kept is not None},
        "experts": {task: table[own][task].score for task, own in table.experts.items()},
        "base": {name: cell.score for name, cell in table[BASE].items()},
    }
