"""The jobs that make a run's experts: trained, or given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tangora.config.recipe import Recipe
from tangora.modes.contract import mode_of
from tangora.modes.stage import stage_key
from tangora.runs.jobs import Resources
from tangora.runs.stages.experts import ExpertJob
from tangora.runs.stages.given import GivenJob, given_key

if TYPE_CHECKING:
    from tangora.runs.sources import Sources

__all__ = ["expert_jobs"]


def expert_jobs(recipe: Recipe, sources: Sources) -> list[ExpertJob]:
    """Return a job for every mode and task, modes outermost; a joint mode has one for all tasks."""
    return [job for mode in recipe.modes for job in _of_mode(recipe, sources, mode)]


def _of_mode(recipe: Recipe, sources: Sources, mode: str) -> Iterator[ExpertJob]:
    config, given = recipe.finetune_config(mode), recipe.modes[mode].experts
    of_mode, names = mode_of(config), tuple(sources.tasks)
    base, rows = recipe.base.identity(sources.base), config.training.rows
    metrics = {task.name: task.metric for task in recipe.tasks}
    for group in [names] if of_mode.joint else [(name,) for name in names]:
        prints = {name: sources.tasks[name].fingerprint for name in group}
        if group[0] in given:
            ((name, print_),) = prints.items()
            content = sources.given[mode][name]
            key = given_key(recipe, mode, base, name, print_, content)
            yield GivenJob(key, group, (), Resources(1.0), mode, content)
            continue
        key = stage_key(config, base, prints, recipe.base.family, [metrics[name] for name in group])
        yield ExpertJob(key, group, (), Resources(float(rows * of_mode.passes)), mode)
