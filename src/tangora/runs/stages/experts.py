"""Train adapters of one task, or of several tasks jointly, once per configuration, base and data.

RUN/adapters/<mode>/<task>/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tangora.adapters.heads import heads_digest
from tangora.errors import FileError
from tangora.modes.contract import Bench
from tangora.modes.earlier import is_earlier
from tangora.runs.jobs import Job
from tangora.support.files import digest, read_json

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.runs.context import Context

__all__ = ["ExpertJob"]


@dataclass(frozen=True)
class ExpertJob(Job):
    """Train the adapter of a task in one mode, or those of all tasks jointly; resume a training that was stopped.

    Attributes:
        mode: of the recipe.
    """

    kind: ClassVar[str] = "expert"
    stage: ClassVar[str] = "fine-tune"
    mode: str

    @property
    def about(self) -> str:
        """Mode and task."""
        return f"{self.mode} · {'+'.join(self.tasks)}"

    def run(self, context: Context) -> None:
        """Train, resume from the last checkpoint if there is one, and write the adapters' folders."""
        from tangora.modes.finetuning import train_to  # deferred: imports torch

        config = context.recipe.finetune_config(self.mode)
        context.progress.begin(self.label, config.training.steps)
        bench = Bench(
            context.base,
            scratch=self.checkpoints(context),
            logs=context.home / "logs" / self.mode / "+".join(self.tasks),
            on_step=lambda step, total, loss: context.progress.update(step, f"loss {loss:.3f}"),
        )
        folders = {task: _folder(context, self.mode, task) for task in self.tasks}
        tasks = [context.task(name) for name in self.tasks]
        train_to(bench, tasks, config, folders, overwrite=True, extra={"stage": self.key})
        for name in self.tasks:
            context.experts.forget(self.mode, name)
        context.progress.end()

    def checkpoints(self, context: Context) -> Path:
        """Return the folder of the training's checkpoints, which is removed once the adapters are written."""
        return context.run / "cache" / "training" / self.key

    def files(self, context: Context) -> list[Path]:
        """Return each ``tangora.json``, which contains the key of the adapter."""
        return [_folder(context, self.mode, task) / "tangora.json" for task in self.tasks]

    def done(self, context: Context) -> bool:
        """Return whether the adapters of exactly this job are on disk; folders are written atomically."""
        try:
            if all(read_json(path).get("stage") == self.key for path in self.files(context)):
                return True
        except FileError:
            return False
        return self.is_earlier(context)

    def is_earlier(self, context: Context) -> bool:
        """Whether the adapter is there and was trained before keys covered code; it is taken as it is."""
        if len(self.tasks) != 1:
            return False
        (task,), recipe = self.tasks, context.recipe
        return is_earlier(
            _folder(context, self.mode, task),
            recipe.finetune_config(self.mode),
            base=context.sources.base,
            task=task,
            rows=context.sources.tasks[task].fingerprint,
            family=recipe.base.family,
        )

    def digest(self, context: Context) -> str:
        """Return a hash of the weights, of trained heads, and of the adapters' records for prediction."""
        adapters = [context.experts[self.mode][task] for task in self.tasks]
        return digest([[a.fingerprint, heads_digest(a.heads), _records(a)] for a in adapters])


def _records(adapter: Adapter) -> dict[str, Any]:
    return {task: record.model_dump(mode="json") for task, record in adapter.records.items()}


def _folder(context: Context, mode: str, task: str) -> Path:
    return context.adapter(mode, task)
