"""`polish`: from an exact fusion towards its experts, on rows without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter, LoraDetails, load
from tangora.adapters.application import applied
from tangora.adapters.heads import HeadRecord
from tangora.adapters.metadata import Metadata, PolishedInfo, read_metadata
from tangora.config.polish import PolishSettings
from tangora.config.settings import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.errors import ArgumentError, DataError, ModelError
from tangora.evaluation.evaluator import refuse_another_base, scoring_key
from tangora.fusion.fusion import Fusion
from tangora.modes.contract import Bench, OnStep, reporting
from tangora.modes.finetuning import in_work_folder, write_trained
from tangora.modes.session import training
from tangora.polishing.following import Follower, divergences, in_turn
from tangora.polishing.lessons import Lesson, choose_rows, joined, lesson, selected, shared_with_test, without_labels
from tangora.polishing.recombination import recombined
from tangora.polishing.student import Start, embedded, put_in, start_of
from tangora.progress import Progress, shown
from tangora.support.extras import require
from tangora.support.files import digest, reachable, refuse_output
from tangora.support.seams import FAMILIES
from tangora.support.source import source_digest
from tangora.support.validation import validate
from tangora.tangent.linearization import linear_factors
from tangora.tasks.model import make_readout
from tangora.tasks.values import Split, Task

if TYPE_CHECKING:
    import os

    from tangora.fusion.weights import Weights
    from tangora.tasks import Base
    from tangora.tasks.model import TaskModel
    from tangora.updates.task_vector import LowRank

__all__ = ["Polished", "polish", "polished"]

AdapterLike: TypeAlias = "Adapter | str | os.PathLike[str]"


def polish(
    adapters: Sequence[AdapterLike],
    base: Base,
    tasks: Sequence[Task],
    *,
    start: AdapterLike | None = None,
    method: str = "task_arithmetic",
    weights: Weights | None = 0.5,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: Path | None = None,
    scratch: Path | None = None,
    cache: Path | None = None,
    same_base: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Adapter:
    r"""Train a fused adapter towards its experts' answers on rows without labels, at a fixed rank.

    .. math:: \min_{A, B} \; \frac{1}{n} \sum_t \mathbb{E}_{x \in X_t} \,
        \mathrm{KL}\big(f(x; \theta_0 + \Delta W_t) \,\|\, f(x; \theta_0 + B A)\big)

    Choose it if some rows of the tasks' inputs can be had: a fusion without data keeps about 95 % of the experts, and
    this keeps nearly all of the rest. The experts' answers are computed first, one expert in memory at a time; then the
    factors are trained as in fine-tuning. No label is read. Following experts on unlabelled rows is known from
    ProDistill (arXiv:2502.12706) and SAMerging (arXiv:2512.21288), which train coefficients of the experts; here the
    factors of the fused adapter are trained, so that the result is a plain adapter of the given rank.

    Args:
        adapters: the experts, or their folders: one of each task, of any mode.
        base: their base; as before afterwards.
        tasks: rows of their inputs are used. If every expert names its task, the order is free; else it is that of
            the experts.
        start: the adapter to start from; by default the experts are fused.
        method, weights, parameters: of that fusion, as in `tangora.fuse`.
        seed: of the choice of rows, of their order and of what is drawn.
        out: folder for the adapter and ``training.json`` (curves, wall time, parameter counts).
        scratch: folder for checkpoints and answers to resume from, removed at the end; None for none.
        cache: folder in which the experts' answers are kept by content; by default in ``scratch``.
        same_base: accept adapters whose recorded base differs.
        overwrite: replace ``out``.
        on_step: called after each step with (step, total steps, loss), in the main process.
        progress: shows passes and steps; by default in a terminal or a notebook. False is silent.
        settings: fields of `tangora.config.polish.PolishSettings`: ``rank``, ``rows``, ``steps``, ``student``, ...

    Raises:
        ArgumentError: adapters and tasks do not match, or a setting is invalid.
        DataError: a task lacks the split, or most of the chosen rows are its test rows.
        FusionError: the experts cannot be fused.
        ModelError: an expert was made for another base; LoRA cannot adapt the start's sites; or a loss is not finite.
        OutputError: ``out`` exists and ``overwrite`` is false, or cannot be written.

    >>> import tangora
    >>> base = tangora.load_base("encoder", family="text-zero-shot")
    >>> files = {"train": "colors/train.parquet", "test": "colors/test.parquet"}
    >>> labels = ["red", "green", "blue"]
    >>> tasks = [tangora.load_task(name, base, files, labels=labels) for name in ("one", "two")]
    >>> adapter = tangora.polish(["adapters/one", "adapters/two"], base, tasks, rank=4, rows=8, steps=2)
    >>> adapter.metadata.polished.rows
    {'one': 8, 'two': 8}
    """
    chosen = validate(PolishSettings, settings, "polish", ArgumentError)
    if out is not None:
        refuse_output(out, overwrite)
    experts = _by_task(adapters, tasks)
    begun = None if start is None else _opened(start)
    with shown(progress) as listener, in_work_folder(scratch, out):
        first = begun if begun is not None else _fused(experts, method, weights, parameters, same_base)
        made = polished(
            first,
            {name: partial(_opened, adapter) for name, adapter in experts.items()},
            base,
            tasks,
            chosen,
            seed=seed,
            scratch=scratch,
            cache=cache if cache is not None or scratch is None else scratch / "answers",
            same_base=same_base,
            on_step=on_step,
            progress=listener,
        )
        if out is not None:
            write_trained({out: (made.adapter, made.record)}, overwrite)
    return made.adapter


@dataclass(frozen=True)
class Polished:
    """The polished adapter, and the content of its ``training.json``."""

    adapter: Adapter
    record: Mapping[str, Any]


def polished(
    start: Adapter,
    experts: Mapping[str, Callable[[], Adapter]],
    base: Base,
    tasks: Sequence[Task],
    settings: PolishSettings,
    *,
    seed: int = 0,
    scratch: Path | None = None,
    cache: Path | None = None,
    same_base: bool = False,
    on_step: OnStep | None = None,
    progress: Progress | None = None,
) -> Polished:
    """Train the start towards the experts; see `polish`, which checks its arguments and writes the result.

    Args:
        start: an adapter of the base.
        experts: task -> loads its expert, which is dropped again once it has answered.
        base: as before afterwards.
        tasks: one for each expert.
        settings: validated.
        seed, scratch, cache, same_base, on_step: see `polish`.
        progress: is given passes and steps.
    """
    require("train", purpose="training")
    listener = progress if progress is not None else Progress()
    refuse_another_base(start, base, same_base=same_base)
    first = start_of(start, base.backbone, settings.rank)
    teaching = _Teaching(base, settings, seed, cache, same_base)
    lessons = teaching.lessons(tasks, experts, start, listener)
    training_of = _Training(base, start, first, settings, seed, lessons)
    bench = Bench(base, scratch, None, reporting(listener, on_step, digits=4))
    listener.begin("polish", settings.steps)
    adapter = training_of.run(bench)
    listener.end()
    record = bench.records[lessons[0].task.name]
    info = adapter.metadata.polished
    assert info is not None
    return Polished(adapter, {**record, "before": info.before, "after": info.after})


@dataclass(frozen=True)
class _Teaching:
    """How the lessons are made; see `polished`."""

    base: Base
    settings: PolishSettings
    seed: int
    cache: Path | None
    same_base: bool

    def lessons(
        self, tasks: Sequence[Task], experts: Mapping[str, Callable[[], Adapter]], start: Adapter, progress: Progress
    ) -> list[Lesson]:
        """Return the lesson of every task, in order; one expert is in memory at a time.

        Raises:
            ModelError: an expert saved parameters whole that the start does not have.
        """
        made = []
        progress.begin("answers of the experts", len(tasks))
        for task in tasks:
            top, same = self.settings.top, self.same_base
            chosen = self._rows(task)
            (rows, held), drawn = self._with_more(task, chosen), len(chosen)
            one = lesson(self.base, task, rows, experts[task.name], top=top, same_base=same, cache=self.cache)
            _refuse_other_parameters(one, start)
            made.append(replace(one, held=held, drawn=drawn))
            progress.advance(detail=task.name)
        progress.end()
        return made

    def _with_more(self, task: Task, rows: Split) -> tuple[Split, int]:
        """Return the rows with those that are made of them, held-out ones last, and how many are held out.

        Nothing is made of rows that are held out.
        """
        held = self.settings.held(len(rows))
        used, last = selected(rows, range(len(rows) - held)), selected(rows, range(len(rows) - held, len(rows)))
        classes = FAMILIES.get(task.family).logits_over == "classes"
        more = max(0, self.settings.reach(classes) - len(rows))
        made = recombined(used, more, self.base, f"{self.seed}:{task.name}") if more else selected(used, [])
        return joined([used, made, last]), held

    def _rows(self, task: Task) -> Split:
        """Return the inputs of the chosen rows.

        Raises:
            DataError: the split is missing or has too few rows, or most of the rows are test rows.
        """
        chosen = choose_rows(task, self.settings.split, self.settings.rows, self.seed)
        where = f"task {task.name}, {self.settings.split}"
        if len(chosen) < 2:
            raise DataError("polish needs at least 2 rows of a task", got=len(chosen), where=where, fix="add rows")
        if 2 * shared_with_test(task, self.settings.split, chosen) > len(chosen):
            fix = "give other rows: scores on rows that an adapter was made with say nothing"
            raise DataError("most of these rows are among the task's test rows", where=where, fix=fix)
        return without_labels(selected(task.splits[self.settings.split], chosen))


@dataclass(frozen=True)
class _Training:
    """A training of the student; see `polished`."""

    base: Base
    start: Adapter
    first: Start
    settings: PolishSettings
    seed: int
    lessons: Sequence[Lesson]

    def run(self, bench: Bench) -> Adapter:
        """Train, and return the student as an adapter."""
        backbone, random = self.base.backbone, self.settings.initial == "random"
        used, held = self._divided()
        judged = held or used
        whole = Adapter({}, whole=self.start.whole)
        with applied(backbone, whole), training(bench, self._posed(), self._config()) as session:
            model, kind = put_in(self.base, self.first, session.config, student=self.settings.student, random=random)
            judges, trained = self._followers(judged, kind), self._followers(used, kind)
            before = divergences(judges, judged)
            for follower, weight in zip(trained, self._weights(before), strict=True):
                follower.weight = weight
            collators = [follower.model.collator for follower in trained]
            ordered = in_turn(used, collators, self.settings.batch_size, self.seed)

            def validate() -> tuple[float, float]:
                mean = sum(divergences(judges, judged).values()) / len(judged)
                return mean, mean

            untrained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            session.run(ordered, trained, validate if held else None, higher_is_better=False)
            after = divergences(judges, judged)
            info = self._info(before, after, bool(held), bench)
            if held and sum(after.values()) > sum(before.values()):  # no step was better than none
                _put_back(model, untrained)
                info = info.model_copy(update={"after": dict(before), "step": 0})
            updates, embeddings = linear_factors(model), embedded(model)
        return self._adapter(updates, embeddings, info)

    def _divided(self) -> tuple[list[Lesson], list[Lesson]]:
        """Return the lessons of the rows that are trained on, and of those on which the best step is chosen."""
        used, held = [], []
        for one in self.lessons:
            count = len(one.rows)
            used.append(one.part(range(count - one.held)))
            if one.held:
                held.append(one.part(range(count - one.held, count)))
        return used, held

    def _followers(self, lessons: Sequence[Lesson], kind: type[TaskModel]) -> list[Follower]:
        made = []
        for one in lessons:
            readout = make_readout(one.task, self.base, one.expert)
            cast(nn.Module, readout).requires_grad_(False)
            model = kind(self.base.backbone, one.task, self.base, readout=readout)
            made.append(Follower(model, one, self.base, self.settings))
        return made

    def _weights(self, before: Mapping[str, float]) -> list[float]:
        """Return a weight for each task, one on average."""
        if self.settings.weigh == "equal" or not any(before.values()):
            return [1.0] * len(self.lessons)
        mean = sum(before.values()) / len(before)
        return [before[one.task.name] / mean for one in self.lessons]

    def _posed(self) -> list[Task]:
        """Return the tasks with fingerprints that cover all that decides the training: checkpoints are found by it."""
        code = source_digest(_Training, without=("tangora.errors", "tangora.progress"))
        settings = self.settings.model_dump(mode="json")
        common = [code, scoring_key(self.start), settings, self.seed, self.base.machine.dtype]
        return [
            replace(one.task, fingerprint=digest([*common, one.task.fingerprint, one.rows.fingerprint, one.key]))
            for one in self.lessons
        ]

    def _config(self) -> FinetuneConfig:
        """Return the configuration of a LoRA on the sites of the start."""
        settings, rank = self.settings, self.settings.rank or self.first.rank
        steps = TrainingSettings(
            steps=settings.steps,
            batch_size=settings.batch_size,
            gradient_accumulation=len(self.lessons),
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup=settings.warmup,
            schedule="cosine",
            evaluate_every=settings.evaluate_every,
            early_stopping=settings.patience or settings.steps,  # never, but the best weights are kept
        )
        lora = LoraSettings(r=rank, alpha=rank, target_modules=list(self.first.factors))
        return FinetuneConfig(mode="polish", train="lora", lora=lora, training=steps, seed=self.seed)

    def _info(self, before: Mapping[str, float], after: Mapping[str, float], held: bool, bench: Bench) -> PolishedInfo:
        settings, validations = self.settings, bench.records[self.lessons[0].task.name]["validation"]
        best = min(validations, key=lambda one: one["score"], default={"step": settings.steps})
        masses = [mass for one in self.lessons if (mass := one.answers.mass(one.rows)) is not None]
        return PolishedInfo(
            start="random" if settings.initial == "random" else self.start.fingerprint,
            start_error=self.first.error,
            left_out=list(self.first.left_out) or None,
            experts={one.task.name: one.print for one in self.lessons},
            split=settings.split,
            rows={one.task.name: one.drawn for one in self.lessons},
            recombined={one.task.name: len(one.rows) - one.drawn for one in self.lessons},
            measured_on="held-out" if held else "the same",
            before=dict(before),
            after=dict(after),
            step=int(best["step"]),
            mass=sum(masses) / len(masses) if masses else None,
            seed=self.seed,
            settings=settings.model_dump(mode="json"),
        )

    def _adapter(self, updates: Mapping[str, LowRank], embeddings: frozenset[str], info: PolishedInfo) -> Adapter:
        tangent, was = self.settings.student == "tangent", self.start.metadata
        metadata = Metadata(
            kind="lora",
            mode="polish",
            train="tangent" if tangent else "lora",
            base=was.base,
            linearize="model" if tangent else "none",
            seed=self.seed,
            fused=was.fused if self.settings.initial == "fused" else None,
            polished=info,
        )
        details = LoraDetails(self.start.config, embeddings=embeddings, names=self.start.details.names)
        heads: dict[str, Mapping[str, Tensor]] = dict(self.start.heads)
        records = dict(self.start.records)
        for one in self.lessons:  # an expert may hold those of other tasks too, which nobody followed
            name = one.task.name
            heads |= {name: one.expert.heads[name]} if name in one.expert.heads else {}
            if one.task.record:  # of the rows that were followed: the expert's own may differ
                records[name] = HeadRecord(**one.task.record)
            elif name in one.expert.records:
                records[name] = one.expert.records[name]
        return Adapter(updates, metadata, details, whole=self.start.whole, heads=heads, records=records)


@torch.no_grad()
def _put_back(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters their former values."""
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.copy_(values[name].to(parameter.device))


def _refuse_other_parameters(one: Lesson, start: Adapter) -> None:
    """Refuse an expert that answered with parameters of its own which the student has not."""
    whole = start.whole
    for name, value in one.expert.whole.items():
        if name not in whole or not torch.equal(whole[name], value):
            what = "an expert saved a parameter of the base whole, and the start has another value of it"
            fix = "polish experts whose modules_to_save agree, or fuse them by name (heads='fuse') and give the result"
            raise ModelError(what, got=one.task.name, where=name, fix=f"{fix} as start")


def _opened(adapter: AdapterLike) -> Adapter:
    return adapter if isinstance(adapter, Adapter) else load(adapter)


def _metadata(adapter: AdapterLike) -> Metadata:
    """Return the metadata of an adapter, of which no tensor is read."""
    if isinstance(adapter, Adapter):
        return adapter.metadata
    return read_metadata(reachable(adapter)) or load(adapter, lazily=True).metadata


def _by_task(adapters: Sequence[AdapterLike], tasks: Sequence[Task]) -> dict[str, AdapterLike]:
    """Return task -> its expert."""
    if len(adapters) != len(tasks) or not tasks:
        what = f"{len(tasks)} tasks need {len(tasks)} experts" if tasks else "polish needs at least one task"
        raise ArgumentError(what, got=len(adapters), where="polish.adapters", fix="give one expert of each task")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ArgumentError("two tasks have one name", got=", ".join(names), where="polish.tasks", fix="rename one")
    recorded = [_metadata(adapter).task for adapter in adapters]
    if not any(recorded):
        return dict(zip(names, adapters, strict=True))
    if odd := [name for name in recorded if name is not None and name not in names]:
        fix = f"give experts of {', '.join(names)}, or tasks of these names"
        raise ArgumentError("an expert of another task", got=odd[0], where="polish.adapters", fix=fix)
    # An expert without a name stands at the place of its task; one with a name may stand anywhere, if all have one.
    placed = [own or name for own, name in zip(recorded, names, strict=True)]
    if sorted(placed) != sorted(names):
        fix = f"give them in the order of the tasks: {', '.join(names)}"
        got = ", ".join(str(name) for name in recorded)
        raise ArgumentError("it is not clear which expert is of which task", got=got, where="polish.adapters", fix=fix)
    return dict(zip(placed, adapters, strict=True))


def _fused(
    experts: Mapping[str, AdapterLike],
    method: str,
    weights: Weights | None,
    parameters: Mapping[str, Any] | None,
    same_base: bool,
) -> Adapter:
    """Fuse the experts; heads that differ are kept, one for each task."""
    fusion = Fusion(list(experts.values()), names=list(experts), same_base=same_base, heads="keep")
    return fusion.merge(method, weights, parameters)
