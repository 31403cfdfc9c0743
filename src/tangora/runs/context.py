"""The context of a run's jobs: models, data and results, rebuilt in any process from the run's folder alone.

    RUN/recipe.yaml ─▶ Context ─▶ base, tasks, experts, statistics, columns, scores: each loaded on first use

A context belongs to one process. It owns everything that is costly to load, so that the process's jobs share it. With
several seeds, `Context.at` returns the context of the jobs of one of them. It shares base, tasks and plan, and has its
own experts, statistics and columns: those of the first seed in the run's folder, those of another in RUN/seeds/SEED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.config.recipe import Recipe, load_run_recipe
from tangora.errors import DataError, ModelError
from tangora.evaluation.evaluator import Evaluator, ScoreStore
from tangora.fusion.fusion import Fusion
from tangora.fusion.statistics import Statistics
from tangora.fusion.statistics import load as load_statistics
from tangora.progress import Progress
from tangora.runs.experts import Experts
from tangora.runs.loading import prepare
from tangora.runs.machine import machine_of
from tangora.runs.plan import Plan, plan
from tangora.runs.sources import Sources
from tangora.runs.stages.columns import ColumnStore
from tangora.runs.stages.given import given_digests
from tangora.runs.stages.polisher import Polisher
from tangora.runs.stages.router import Routings
from tangora.support.machine import Machine
from tangora.tasks import Base, Task, load_base, load_task
from tangora.tasks.overview import SAMPLE, Overview, overview_of, surveyed

if TYPE_CHECKING:
    from tangora.config.tasks import TaskSettings

__all__ = ["Context"]


@dataclass(eq=False)
class Context:
    """The state of a run in one process.

    Args:
        run: the run's folder.
        recipe: the run's recipe; at one of its seeds, see `at`.
        progress: receives the reports of the current job.
        given_machine: the machine of this process; by default that of the recipe, see `machine_of`.
    """

    run: Path
    recipe: Recipe
    progress: Progress = field(default_factory=Progress)
    given_machine: Machine | None = None
    _root: Context | None = field(default=None, repr=False)
    _views: dict[int, Context] = field(default_factory=dict, repr=False)
    _base: Base | None = field(default=None, repr=False)
    _tasks: dict[str, Task] = field(default_factory=dict, repr=False)
    _fusion: tuple[tuple[str, str], Fusion] | None = field(default=None, repr=False)
    _statistics: dict[str, dict[str, Statistics]] = field(default_factory=dict, repr=False)
    _digests: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, run: Path, progress: Progress | None = None, *, trust_remote_code: bool = False) -> Context:
        """Return the context of a run's folder; ``trust_remote_code`` as in `load_recipe`.

        Raises:
            FileError: no run was started in the folder.
            RecipeError: its recipe is invalid.
        """
        return cls(run, load_run_recipe(run, trust_remote_code=trust_remote_code), progress or Progress())

    def at(self, seed: int | None) -> Context:
        """Return the context of jobs of one seed: `Job.seed`.

        Only one at a time keeps its adapters and columns in memory.

        Args:
            seed: one of the recipe's; None for jobs of every seed, whose files are among those of the first one.
        """
        root = wanted = self._root or self
        if seed is not None and seed != self.recipe.first_seed:
            if seed not in root._views:
                own: dict[str, Any] = {"_root": root, "_views": {}, "_fusion": None, "_statistics": {}}
                root._views[seed] = replace(root, recipe=root.recipe.at(seed), **own)
            wanted = root._views[seed]
        for other in (root, *root._views.values()):
            if other is not wanted:
                other._forget()
        return wanted

    @property
    def home(self) -> Path:
        """The folder of what depends on the seed."""
        return self.run if self._root is None else self.run / "seeds" / str(self.recipe.seed)

    def adapter(self, mode: str, task: str) -> Path:
        """Return the folder of an expert; a given one is the same with every seed."""
        given = task in self.recipe.modes[mode].experts
        return (self.run if given else self.home) / "adapters" / mode / task

    def columns_of(self, mode: str) -> Path:
        """Return the folder of a mode's columns; those of given experts alone are the same with every seed."""
        return (self.home if self.recipe.trained(mode) else self.run) / "cache" / "columns" / mode

    @cached_property
    def machine(self) -> Machine:
        """The machine of this process; its number of threads is set on first use."""
        if self._root is not None:
            return self._root.machine
        machine = self.given_machine or machine_of(self.recipe, self.run)
        machine.use_threads()
        return machine

    @cached_property
    def sources(self) -> Sources:
        """Fingerprints and sizes of base and tasks, as recorded in the run's folder, or else as loaded now."""
        if self._root is not None:
            return self._root.sources
        recorded = Sources.read(self.run, self.recipe)
        return recorded if recorded is not None else self.load()

    def load(self) -> Sources:
        """Load the base and every task, ignoring earlier records, and return their fingerprints and sizes."""
        base, tasks = prepare(self.recipe, self.progress, self.machine)
        self._base, self._tasks = base, {task.name: task for task in tasks}
        self.sources = replace(Sources.of(base, tasks), given=self._given(base))
        return self.sources

    def _given(self, base: Base) -> dict[str, dict[str, str]]:
        """Check the adapters that are given as experts, and return the hashes of their contents."""
        before = Sources.read(self.run, self.recipe)
        return given_digests(self.run, self.recipe, base, self._tasks, before.given if before is not None else {})

    def survey(self) -> dict[str, Overview]:
        """Load the base and every task for a preview, and return an overview of each task's rows.

        In a folder without results, no key has to match one. So only a sample of many rows is converted, and keys of
        jobs are those of this sample; the numbers of rows in `sources` are of all rows.
        """
        if self.run.is_dir() and any(self.run.iterdir()):
            self.load()
            settings = {config.name: config for config in self.recipe.tasks}
            return {name: overview_of(task, settings[name], self.base) for name, task in self.tasks.items()}
        found: dict[str, Overview] = {}

        def load_sample(config: TaskSettings, base: Base, seed: int) -> Task:
            task, found[config.name] = surveyed(config, base, seed, SAMPLE)
            return task

        base, tasks = prepare(self.recipe, self.progress, self.machine, load_sample)
        self._base, self._tasks = base, {task.name: task for task in tasks}
        sources = Sources.of(base, tasks)
        rows = {name: {split: of.rows for split, of in one.splits.items()} for name, one in found.items()}
        self.sources = replace(
            sources,
            tasks={name: replace(facts, rows=rows[name]) for name, facts in sources.tasks.items()},
            given=self._given(base),
        )
        return found

    def release(self) -> None:
        """Release base, data and adapters; they are loaded again on the next use."""
        self._base, self._tasks, self._views = None, {}, {}
        self.__dict__.pop("archive", None)
        self._forget()

    def _forget(self) -> None:
        """Release adapters and what was made of them."""
        self._fusion, self._statistics = None, {}
        for name in ("experts", "columns"):
            self.__dict__.pop(name, None)

    @property
    def base(self) -> Base:
        """The base model.

        Raises:
            ModelError: its weights differ from those that the run was planned for.
        """
        if self._root is not None:
            return self._root.base
        expected = self.sources.base
        if self._base is None:
            self._base = load_base(self.recipe.base, self.machine)
        if self._base.fingerprint != expected:
            fix = "start tangora run again: it computes everything that depends on them again"
            raise ModelError("the base's weights changed since the run was planned", where="base.model", fix=fix)
        return self._base

    def task(self, name: str) -> Task:
        """Return a task of the recipe.

        Raises:
            DataError: its rows differ from those that the run was planned for.
        """
        if self._root is not None:
            return self._root.task(name)
        expected = self.sources.tasks[name].fingerprint
        if name not in self._tasks:
            config = next(task for task in self.recipe.tasks if task.name == name)
            self._tasks[name] = load_task(config, self.base, self.recipe.first_seed)
        if self._tasks[name].fingerprint != expected:
            fix = "start tangora run again: it computes everything that depends on them again"
            raise DataError("the task's rows changed since the run was planned", where=f"task {name}", fix=fix)
        return self._tasks[name]

    @property
    def names(self) -> list[str]:
        """Names of the tasks, in the recipe's order."""
        return [task.name for task in self.recipe.tasks]

    @property
    def tasks(self) -> dict[str, Task]:
        """Every task by its name, in the recipe's order."""
        return {name: self.task(name) for name in self.names}

    @cached_property
    def experts(self) -> Experts:
        """The adapters, by mode and task."""
        return Experts(self.adapter, list(self.recipe.modes), self.names)

    def statistics(self, mode: str) -> dict[str, Statistics]:
        """Return the statistics of a mode's experts, by task; their tensors are read on first use."""
        if mode not in self._statistics:
            folder = self.home / "statistics" / mode
            self._statistics[mode] = {name: load_statistics(folder / f"{name}.safetensors") for name in self.names}
        return self._statistics[mode]

    def fusion(self, mode: str, space: str, statistics: Mapping[str, Statistics]) -> Fusion:
        """Return the fusion of all experts of a mode; keep only the last one, since full models are large."""
        if self._fusion is None or self._fusion[0] != (mode, space):
            self._fusion = None  # free the last one before the next is made
            adapters, listed = list(self.experts[mode].values()), list(statistics.values())
            made = Fusion(adapters, space, seed=self.recipe.seed, names=self.names, statistics=listed)
            self._fusion = ((mode, space), made)
        return self._fusion[1]

    @cached_property
    def columns(self) -> ColumnStore:
        """Columns of the modes whose logits are linear in the coefficients."""
        return ColumnStore(self.base, self.tasks, self.experts, self.columns_of, self.recipe.evaluation.batch_size)

    @property
    def polisher(self) -> Polisher:
        """Trains fusions towards their experts."""
        return Polisher(self.base, self.tasks, self.run / "cache", self.recipe.seed)

    @property
    def router(self) -> Routings:
        """Puts experts and the routers between them together."""
        return Routings(self.base, self.tasks, self.run / "cache", self.recipe.seed)

    @cached_property
    def archive(self) -> ScoreStore:
        """Scores measured by earlier plans and versions; nothing is added to it."""
        return self._root.archive if self._root is not None else ScoreStore.read(self.run / "cache" / "scores.jsonl")

    def evaluator(self, store: ScoreStore, tasks: Sequence[Task] | None = None) -> Evaluator:
        """Return an evaluator on all tasks, or on the given ones, that keeps its scores in ``store``."""
        chosen = list(self.tasks.values()) if tasks is None else tasks
        return Evaluator(self.base, chosen, batch_size=self.recipe.evaluation.batch_size, store=store)

    @cached_property
    def plan(self) -> Plan:
        """The jobs of the run, of all seeds."""
        return self._root.plan if self._root is not None else plan(self.recipe, self.sources)

    def digest(self, key: str) -> str:
        """Return the hash of a finished job's result, computed once."""
        if key not in self._digests:
            job = self.plan[key]
            self._digests[key] = job.digest(self.at(job.seed))
        return self._digests[key]

    def changed(self, key: str) -> None:
        """Forget the hash of a job's result, after the job has run."""
        self._digests.pop(key, None)

    def forget_statistics(self, mode: str) -> None:
        """Read the statistics of a mode again on next use, after some were collected."""
        self._statistics.pop(mode, None)
