"""Learn a router: its gates are trained on rows, towards certain answers, the experts' answers, or labels.

    rows of each task ── an objective ──▶ lessons ── a step of every task, experts frozen ──▶ gates

The experts and the base stay as they are. Rows have labels only with ``objective: labels``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.config.learning import LearnedSettings
from tangora.config.polish import PolishSettings
from tangora.config.settings import FinetuneConfig, TrainingSettings
from tangora.modes.contract import Bench
from tangora.modes.session import Session, training
from tangora.modular.banks import whole
from tangora.modular.network import attached
from tangora.polishing.following import Follower, divergences, in_turn
from tangora.polishing.objectives import answer_entropy
from tangora.polishing.route_rows import lessons_of
from tangora.support.extras import require
from tangora.support.files import digest
from tangora.support.source import source_digest
from tangora.tasks.model import TaskModel, make_readout
from tangora.updates.text import tensor_digest

if TYPE_CHECKING:
    from jaxtyping import Float
    from typing_extensions import Self

    from tangora.modes.contract import OnStep
    from tangora.modular.network import Network
    from tangora.polishing.lessons import Lesson
    from tangora.tasks import Base, Task

__all__ = ["RouteTraining", "learn_routes"]

_UNCLIPPED = 1e12  # a norm that no gradient has: the paper clips none
_POINTS = 50  # of a recorded curve


@dataclass(frozen=True)
class RouteTraining:
    """What a router learns with.

    Attributes:
        base: as before afterwards.
        tasks: those of the experts, in their order.
        experts: name -> adapter.
        settings: of the router.
        seed: of the rows that are drawn, and of their order.
        scratch: folder for checkpoints; None for none.
        cache: folder for the experts' answers; None for none.
        on_step: called after each step.
    """

    base: Base
    tasks: Sequence[Task]
    experts: Mapping[str, Adapter]
    settings: LearnedSettings
    seed: int = 0
    scratch: Path | None = None
    cache: Path | None = None
    on_step: OnStep | None = None


def learn_routes(network: Network, gates: Mapping[str, nn.Parameter], given: RouteTraining) -> dict[str, Any]:
    """Train the gates of a network in place, and return a record of it: the objective, rows, and curves.

    Every step sees rows of every task: the loss is the sum over the tasks of the mean over their rows, as in WEMoE
    (arXiv:2402.00433, eq. 8) with Adam and, by default, a cosine schedule.

    Args:
        network: of the experts and gates; put into the base for the training, and taken out again.
        gates: the parameters to train, by their names in the network.
        given: base, rows, experts and settings.

    Raises:
        DataError: a task lacks the split, or has no rows in it.
        ModelError: the objective is not defined for the answers of a task, or a loss is not finite.
        MissingExtraError: the extra ``train`` is not installed.
    """
    require("train", purpose="training")
    lessons = lessons_of(given)
    return _Training(network, gates, given, lessons).run()


@dataclass(frozen=True)
class _Training:
    """A training of gates; see `learn_routes`."""

    network: Network
    gates: Mapping[str, nn.Parameter]
    given: RouteTraining
    lessons: Sequence[Lesson]
    _first: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Train, and return the record."""
        base, settings = self.given.base, self.given.settings
        used, held = self._divided()
        bench = Bench(base, self.given.scratch, None, self.given.on_step)
        posed = self._posed()
        self._first.update({name: gate.detach().clone() for name, gate in self.gates.items()})
        self.network.requires_grad_(False)
        try:
            with training(bench, posed, self._config()) as session, self._attached():
                judges, pupils = self._pupils(held or used), self._pupils(used)
                before = divergences(judges, held or used)
                self._train(session, pupils, used, judges, held)
                after = divergences(judges, held or used)
                if held and sum(after.values()) > sum(before.values()):  # no step was better than none
                    self._restart()
                    after = dict(before)
        finally:
            self.network.requires_grad_(False)
        record = bench.records.get(posed[0].name, {}) if settings.steps else {}
        return self._record(before, after, record, held=bool(held))

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        with attached(self.given.base.backbone, self.network), whole(self.network):
            yield

    def _train(
        self,
        session: Session,
        pupils: Sequence[_Pupil],
        used: Sequence[Lesson],
        judges: Sequence[_Pupil],
        held: Sequence[Lesson],
    ) -> None:
        if not self.given.settings.steps:
            return
        for gate in self.gates.values():
            gate.requires_grad_(True)
        collators = [pupil.model.collator for pupil in pupils]
        ordered = in_turn(used, collators, self.given.settings.batch_size, self.given.seed)

        def validate() -> tuple[float, float]:
            mean = sum(divergences(judges, held).values()) / len(held)
            return mean, mean

        session.run(ordered, pupils, validate if held else None, higher_is_better=False)

    def _divided(self) -> tuple[list[Lesson], list[Lesson]]:
        """Return the rows that are trained on, and those on which the best step is chosen."""
        counts = [(one, len(one.rows) - one.held) for one in self.lessons]
        held = [one.part(range(count, len(one.rows))) for one, count in counts if one.held]
        return [one.part(range(count)) for one, count in counts], held

    def _pupils(self, lessons: Sequence[Lesson]) -> list[_Pupil]:
        base, settings = self.given.base, self.given.settings
        made: list[_Pupil] = []
        for one in lessons:
            readout = make_readout(one.task, base, one.expert)
            cast(nn.Module, readout).requires_grad_(False)
            model = TaskModel(base.backbone, one.task, base, readout=readout)
            if settings.objective == "follow":
                pupil: _Pupil = _Following(model, one, base, PolishSettings(temperature=settings.temperature))
            else:
                pupil = _Pupil_of[settings.objective](model, one)
            pupil.weight = float(len(lessons))  # a step divides the loss by the number of tasks, and the sum is meant
            made.append(pupil)
        return made

    def _posed(self) -> list[Task]:
        """Return the tasks with fingerprints that cover all that decides the training: checkpoints are found by it."""
        code = source_digest(learn_routes, type(self.network), without=("tangora.errors", "tangora.progress"))
        state = [[name, tensor_digest(value)] for name, value in sorted(self.network.state_dict().items())]
        settings = self.given.settings.model_dump(mode="json")
        common = [code, state, sorted(self.gates), settings, self.given.seed, self.given.base.machine.dtype]
        return [
            replace(one.task, fingerprint=digest([*common, one.task.fingerprint, one.rows.fingerprint, one.key]))
            for one in self.lessons
        ]

    def _config(self) -> FinetuneConfig:
        settings = self.given.settings
        steps = TrainingSettings(
            steps=max(1, settings.steps),
            batch_size=settings.batch_size,
            gradient_accumulation=len(self.lessons),
            learning_rate=settings.learning_rate,
            warmup=0.0,
            schedule="cosine" if settings.schedule == "cosine" else "constant_with_warmup",
            max_grad_norm=_UNCLIPPED,
            evaluate_every=settings.evaluate_every,
            early_stopping=max(1, settings.steps),  # never, but the best weights are kept
            checkpoint_every=settings.checkpoint_every,
        )
        return FinetuneConfig(mode=settings.name, train="routed", training=steps, seed=self.given.seed)

    @torch.no_grad()
    def _restart(self) -> None:
        for name, gate in self.gates.items():
            gate.copy_(self._first[name].to(gate.device))

    def _record(
        self, before: Mapping[str, float], after: Mapping[str, float], record: Mapping[str, Any], *, held: bool
    ) -> dict[str, Any]:
        settings, validations = self.given.settings, record.get("validation", [])
        best = min(validations, key=lambda one: one["score"], default={"step": settings.steps})
        unmoved = held and dict(before) == dict(after)
        return {
            "objective": settings.objective,
            "split": settings.split,
            "oracle": settings.split == "oracle",
            "rows": {one.task.name: one.drawn for one in self.lessons},
            "experts": {one.task.name: one.print for one in self.lessons},
            "measured_on": "held-out" if held else "the same",
            "before": dict(before),
            "after": dict(after),
            "step": 0 if unmoved else int(best["step"]),
            "trained": sum(gate.numel() for gate in self.gates.values()),
            "curve": thinned(record.get("steps", []), record.get("loss", []), _POINTS),
            "validation": [[int(one["step"]), one["loss"]] for one in validations],
            "seconds": record.get("seconds", 0.0),
        }


class _Settled(nn.Module):
    """A model whose dropout is off in training too: experts and base are frozen, and gates have none."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


class _Following(_Settled, Follower):
    """The distance from the answers of a task's expert."""


class _Judged(_Settled):
    """A task model whose loss needs no expert."""

    def __init__(self, model: TaskModel, lesson: Lesson) -> None:
        super().__init__()
        self.model, self._over = model, lesson.task.form.logits_over
        self.weight = 1.0

    def forward(self, row: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        """Return the mean ``loss`` of the batch's rows, times the task's weight."""
        return {"loss": self.weight * self.divergence(row, **batch).mean()}

    def divergence(self, row: Tensor, **batch: Tensor) -> Float[Tensor, " batch"]:
        """Return the objective of each row, in nats."""
        raise NotImplementedError


class _Certain(_Judged):
    """The entropy of each row's answer."""

    def divergence(self, row: Tensor, **batch: Tensor) -> Float[Tensor, " batch"]:
        """Return the entropy of each row."""
        labels = batch.pop("labels")
        return answer_entropy(self.model.logits(batch, labels), labels, self._over)


class _Labelled(_Judged):
    """The loss of each row with its label."""

    def divergence(self, row: Tensor, **batch: Tensor) -> Float[Tensor, " batch"]:
        """Return the loss of each row."""
        labels = batch.pop("labels")
        return self.model.losses(batch, labels)


_Pupil = _Following | _Judged
_Pupil_of: dict[str, Callable[[TaskModel, Any], _Judged]] = {"entropy": _Certain, "labels": _Labelled}


def thinned(steps: Sequence[int], losses: Sequence[float], most: int) -> list[list[float]]:
    """Return a curve of at most so many points: step, and the mean loss since the point before.

    >>> thinned([1, 2, 3, 4], [4.0, 2.0, 1.0, 0.0], 2)
    [[2, 3.0], [4, 0.5]]
    """
    size = -(-len(steps) // most) or 1
    parts = [slice(i, i + size) for i in range(0, len(steps), size)]
    return [[steps[part][-1], sum(losses[part]) / len(losses[part])] for part in parts]
