"""TAPS on top of one adapter of all tasks (arXiv:2203.16708, joint variant).

rows of all tasks ─ joint LoRA ─▶ φ ─ for each task: base + φ, frozen ─ gated LoRA ─▶ δ_t ─▶ adapter φ + δ_t
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from tangora.adapters.adapter import Adapter
from tangora.adapters.application import applied
from tangora.errors import ModelError
from tangora.modes.contract import Footprint
from tangora.modes.gating import check_gated_lora, fit_gated_lora, gated_lora_footprint, with_gates
from tangora.modes.outcome import adapter_of
from tangora.modes.preparation import adapt
from tangora.modes.session import training
from tangora.tangent.linearization import linear_factors
from tangora.tasks.model import TaskModel, make_readout
from tangora.updates.task_vector import TaskVector

if TYPE_CHECKING:
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, OnStep
    from tangora.tasks import Base, Task

__all__ = ["check_gated_joint", "gated_joint_footprint", "train_gated_joint"]


def check_gated_joint(base: Base, config: FinetuneConfig) -> None:
    """Refuse what TAPS refuses, and an A₀ for each task.

    Raises:
        ModelError: names the setting.
    """
    check_gated_lora(base, config)
    if config.lora.a_init == "per_task":
        fix = "set a_init: shared"
        raise ModelError("the adapter of all tasks has one A₀", got="per_task", where="lora.a_init", fix=fix)


def gated_joint_footprint(base: Base, config: FinetuneConfig) -> Footprint:
    """Count the factors of both adapters of a task, whose file has twice the rank; and the gates of one."""
    gated = gated_lora_footprint(base, config)
    return replace(gated, trainable=2 * gated.trainable - gated.sites, size=2 * gated.size)


def train_gated_joint(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train one LoRA on all tasks, then a gated one for each task on top of it, and return the sum for each task.

    If all gates of a task close, its adapter is that of all tasks.

    Raises:
        ModelError: the settings do not fit the base, or a loss or weight is not finite.
    """
    stages = _Stages(bench, config, len(tasks))
    shared = _train_shared(stages, tasks)
    first = {task.name: bench.records[task.name] for task in tasks}
    saved: dict[str, Tensor] = {}
    made = {}
    for number, task in enumerate(tasks):
        with applied(bench.base.backbone, shared, saved):
            made[task.name] = _train_on_top(stages, number, task, shared)
        bench.records[task.name]["joint"] = first[task.name]
    return made


@dataclass(frozen=True)
class _Stages:
    """The joint training and those of the tasks, as parts of one job."""

    bench: Bench
    config: FinetuneConfig
    tasks: int

    @property
    def joint_steps(self) -> int:
        ratio: float = self.config.settings.joint_ratio
        return max(1, round(ratio * self.config.training.steps * self.tasks))

    @property
    def joint_config(self) -> FinetuneConfig:
        training = self.config.training.model_copy(update={"steps": self.joint_steps})
        return self.config.model_copy(update={"training": training})

    def on_step(self, done: int) -> OnStep | None:
        """Return the bench's callback for a part of the job that begins after ``done`` steps."""
        report, whole = self.bench.on_step, self.joint_steps + self.tasks * self.config.training.steps
        return None if report is None else lambda step, _, loss: report(done + step, whole, loss)

    def bench_of(self, number: int, shared: Adapter) -> Bench:
        """Return the bench of a task's own training, with checkpoints of the adapter below it alone."""
        scratch = self.bench.scratch and self.bench.scratch / f"on-{shared.fingerprint[:16]}"
        done = self.joint_steps + number * self.config.training.steps
        return replace(self.bench, scratch=scratch, on_step=self.on_step(done))


def _train_shared(stages: _Stages, tasks: Sequence[Task]) -> Adapter:
    """Train the adapter of all tasks; its heads are those with which each task's own training begins."""
    bench, config = replace(stages.bench, on_step=stages.on_step(0)), stages.joint_config
    with training(bench, tasks, config) as session:
        start = adapt(bench.base.backbone, None, config)
        session.fit(lambda task: TaskModel(bench.base.backbone, task, bench.base))
        updates = linear_factors(start.model)
    return replace(adapter_of(bench.base, tasks, config, updates, start), heads=dict(bench.heads))


def _train_on_top(stages: _Stages, number: int, task: Task, shared: Adapter) -> Adapter:
    """Train a task's gated LoRA on the base with the shared adapter in its weights, and return the sum of both."""
    bench, config = stages.bench_of(number, shared), stages.config
    base = bench.base
    with training(bench, [task], config) as session:
        start, gates, updates = fit_gated_lora(
            session, lambda task: TaskModel(base.backbone, task, base, make_readout(task, base, shared))
        )
    both = TaskVector(shared.updates) + TaskVector(updates)
    # Of twice the rank, it cannot be compared with the φ₀ that either training began with.
    adapter = adapter_of(base, [task], config, dict(both), replace(start, initial=None))
    return with_gates(adapter, gates, bench, task, config.settings)
