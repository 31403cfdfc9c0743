"""Train a student from the start that it is given towards the lessons of a polish."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.application import applied
from tangora.adapters.metadata import Metadata, PolishedInfo
from tangora.config.polish import PolishSettings
from tangora.config.settings import FinetuneConfig, LoraSettings, TrainingSettings
from tangora.evaluation.evaluator import scoring_key
from tangora.modes.belonging import refuse_another_base
from tangora.modes.contract import Bench, OnStep, reporting
from tangora.modes.session import training
from tangora.polishing.following import Follower, divergences, in_turn
from tangora.polishing.layered import ByLayers, Layered
from tangora.polishing.made import made_adapter
from tangora.polishing.student import Start, embedded, put_in, start_of
from tangora.polishing.teaching import Teaching
from tangora.progress import Progress
from tangora.storage.held import entries
from tangora.support.extras import require
from tangora.support.files import digest
from tangora.support.source import source_digest
from tangora.tangent.linearization import linear_factors
from tangora.tasks.fitting import of_backbone
from tangora.tasks.model import TaskModel, make_readout
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from tangora.polishing.lessons import Lesson
    from tangora.tasks import Base
    from tangora.updates.task_vector import Update

__all__ = ["Polished", "polished"]


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
    """Train the start towards the experts; `tangora.polish` checks its arguments and writes the result.

    Args:
        start: an adapter of the base.
        experts: task -> loads its expert, which is dropped again once it has answered.
        base: as before afterwards.
        tasks: one for each expert.
        settings: validated.
        seed, scratch, cache, same_base, on_step: see `tangora.polish`.
        progress: is given passes and steps.
    """
    require("train", purpose="training")
    listener = progress if progress is not None else Progress()
    refuse_another_base(start, base, same_base=same_base)
    fitted = of_backbone(start, base)
    whole = settings.student == "entries" and settings.rank is None  # then nothing is cut into factors
    first = Start({}, 0.0) if whole else start_of(fitted, base.backbone, settings.rank)
    teaching = Teaching(base, settings, seed, cache, same_base)
    lessons = teaching.lessons(tasks, experts, fitted, listener)
    training_of = _Training(base, start, first, settings, seed, lessons)
    bench = Bench(base, scratch, None, reporting(listener, on_step, digits=4))
    by_layers = training_of.by_layers(experts, bench, listener)
    if settings.initial == "layers":
        training_of = replace(training_of, first=by_layers.in_closed_form(first), plain=first)
    if settings.objective == "layers" or settings.steps == 0:
        adapter = training_of.layered(by_layers, bench)
    else:
        listener.begin("polish", settings.steps)
        adapter = training_of.run(bench)
        listener.end()
    record = bench.records[lessons[0].task.name]
    info = adapter.metadata.polished
    assert info is not None
    return Polished(adapter, {**record, "before": info.before, "after": info.after})


@dataclass(frozen=True)
class _Training:
    """A training of the student; see `polished`.

    ``plain`` is the start without its layers in closed form, if ``first`` has these.
    """

    base: Base
    start: Adapter
    first: Start
    settings: PolishSettings
    seed: int
    lessons: Sequence[Lesson]
    plain: Start | None = None

    def by_layers(self, experts: Mapping[str, Callable[[], Adapter]], bench: Bench, progress: Progress) -> ByLayers:
        """Return what works on the blocks, with a folder for what is done in the bench's."""
        folder = None
        if bench.scratch is not None:
            prints = {task.name: task.fingerprint for task in self._posed()}
            folder = bench.scratch / digest(["layers", self.base.identity, torch.__version__, prints])[:16]
        used, _ = self._divided()
        fitted = of_backbone(self.start, self.base)
        rest = (self.settings, self.seed, folder, progress, bench.on_step or (lambda *_: None))
        return ByLayers(self.base, fitted, used, experts, *rest)

    def layered(self, by_layers: ByLayers, bench: Bench) -> Adapter:
        """Train block by block, or with 0 steps nothing, and return the student as an adapter."""
        began = time.monotonic()
        used, held = self._divided()
        judged = held or used
        unchanged = by_layers.unchanged(self.plain or self.first)
        made = by_layers.trained(self.first) if self.settings.steps else Layered(self.first.factors, ())
        bench.records[self.lessons[0].task.name] = self._record(made, began)
        before, after = self._measured(unchanged, judged), self._measured(made, judged)
        info = self._info(before, after, bool(held), bench).model_copy(update={"cut_error": made.error})
        if self.settings.student == "entries":  # these start from the fusion itself, not from its cut
            info = info.model_copy(update={"start_error": 0.0})
        if held and sum(after.values()) > sum(before.values()):  # nothing was better than something
            made = unchanged
            error = 0.0 if self.settings.initial == "random" else (self.plain or self.first).error
            info = info.model_copy(update={"after": dict(before), "step": 0, "cut_error": None, "start_error": error})
        return self._made(made.updates, self._embeddings(made.updates), info, full=made.full)

    def _record(self, made: Layered, began: float) -> dict[str, Any]:
        """Return the content of ``training.json``."""
        losses = [loss for curve in made.curves for loss in curve.losses]
        return {
            "steps": list(range(1, len(losses) + 1)),
            "loss": losses,
            "validation": [],
            "seconds": round(time.monotonic() - began, 3),
            "trainable": sum(curve.trainable for curve in made.curves),
            "total": sum(entries(p) for p in self.base.backbone.parameters()),
            "blocks": [{"block": c.block, "before": c.before, "after": c.after} for c in made.curves],
        }

    def _embeddings(self, updates: Mapping[str, Update]) -> frozenset[str]:
        modules = dict(self.base.backbone.named_modules())
        return frozenset(site for site in updates if isinstance(modules.get(site), nn.Embedding))

    def _measured(self, made: Layered, judged: Sequence[Lesson]) -> dict[str, float]:
        """Return the divergences of changed weights."""
        whole = of_backbone(self.start, self.base).whole
        changes = Adapter(made.updates, Metadata(kind="full" if made.full else "lora"))
        with applied(self.base.backbone, Adapter({}, whole=whole)), applied(self.base.backbone, changes):
            return divergences(self._followers(judged, TaskModel), judged)

    def run(self, bench: Bench) -> Adapter:
        """Train, and return the student as an adapter."""
        backbone, random = self.base.backbone, self.settings.initial == "random"
        used, held = self._divided()
        judged = held or used
        whole = Adapter({}, whole=of_backbone(self.start, self.base).whole)
        plain = None if self.plain is None else self._measured(Layered(self.plain.factors, ()), judged)
        with applied(backbone, whole), training(bench, self._posed(), self._config()) as session:
            model, kind = put_in(self.base, self.first, session.config, student=self.settings.student, random=random)
            judges, trained = self._followers(judged, kind), self._followers(used, kind)
            begun = divergences(judges, judged)
            for follower, weight in zip(trained, self._weights(begun), strict=True):
                follower.weight = weight
            collators = [follower.model.collator for follower in trained]
            ordered = in_turn(used, collators, self.settings.batch_size, self.seed)

            def validate() -> tuple[float, float]:
                mean = sum(divergences(judges, judged).values()) / len(judged)
                return mean, mean

            untrained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            session.run(ordered, trained, validate if held else None, higher_is_better=False)
            after = divergences(judges, judged)
            info = self._info(plain or begun, after, bool(held), bench)
            if held and sum(after.values()) > sum(begun.values()):  # no step was better than none
                _put_back(model, untrained)
                after, info = begun, info.model_copy(update={"after": dict(begun), "step": 0})
            updates, embeddings = linear_factors(model), embedded(model)
        if self.plain is not None and plain is not None and held and sum(after.values()) > sum(plain.values()):
            updates = dict(self.plain.factors)
            info = info.model_copy(update={"after": dict(plain), "step": 0, "start_error": self.plain.error})
        return self._made(updates, embeddings, info)

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
            sharpness=settings.sharpness,
            averaged=settings.averaged,
            evaluate_every=settings.evaluate_every,
            early_stopping=settings.patience or settings.steps,  # never, but the best weights are kept
        )
        lora = LoraSettings(r=rank, alpha=rank, target_modules=list(self.first.factors))
        return FinetuneConfig(mode="polish", train="lora", lora=lora, training=steps, seed=self.seed)

    def _made(
        self, updates: Mapping[str, Update], embeddings: frozenset[str], info: PolishedInfo, *, full: bool = False
    ) -> Adapter:
        return made_adapter(self.start, self.base, self.lessons, updates, embeddings, info, full=full)

    def _info(self, before: Mapping[str, float], after: Mapping[str, float], held: bool, bench: Bench) -> PolishedInfo:
        settings, validations = self.settings, bench.records[self.lessons[0].task.name]["validation"]
        best = min(validations, key=lambda one: one["score"], default={"step": settings.steps})
        masses = [mass for one in self.lessons if (mass := one.answers.mass(one.rows)) is not None]
        return PolishedInfo(
            start="random" if settings.initial == "random" else self.start.fingerprint,
            start_error=0.0 if settings.initial == "random" else self.first.error,  # nothing of the start is in it
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


@torch.no_grad()
def _put_back(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters their former values."""
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.copy_(values[name].to(parameter.device))
