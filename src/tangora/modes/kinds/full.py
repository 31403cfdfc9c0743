"""Full fine-tuning: every floating-point weight of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tangora.config.settings import WeightSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["MODE", "Full"]


class Full:
    """Train every weight; the adapter contains the change of each parameter and is as large as the model."""

    name = "full"
    settings: Final = WeightSettings
    default_rate: Final = 5e-5
    passes: Final = 3
    joint: Final = False
    kind: Final = "full"
    linearize: Final = "none"
    answers: Final = "weights"
    linear_in_coefficients: Final = False
    can_be_student: Final = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse weights that are held in half precision, which take no small steps; see `Mode.check`."""
        from tangora.modes.preparation import refuse_held, refuse_spread  # deferred: torch

        refuse_held(base, config)
        refuse_spread(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count every parameter."""
        from tangora.modes.preparation import weights_footprint  # deferred: torch

        return weights_footprint(base)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train every weight in place, and restore it; see `Mode.train`."""
        from tangora.modes.outcome import adapter_of  # deferred: torch
        from tangora.modes.session import training
        from tangora.tasks.model import TaskModel
        from tangora.updates.task_vector import Dense

        base = bench.base
        with training(bench, tasks, config, copy_weights=True) as session:
            for parameter in base.backbone.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            session.fit(lambda task: TaskModel(base.backbone, task, base))
            updates = {name: Dense(change) for name, change in session.changes().items()}
        return {task.name: adapter_of(base, tasks, config, updates) for task in tasks}

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with the updates in the weights."""
        from tangora.modes.answers import by_weights  # deferred: torch

        return by_weights(base, adapter, saved)

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return the base with its weights changed in place; see `Mode.load_model`."""
        from tangora.adapters.adapter import load  # deferred: torch

        load(folder).apply_(model)
        return model.eval()


MODE = Full()
