"""Full tangent fine-tuning (arXiv:2305.12827): every weight, in the expansion of the network at the base."""

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

__all__ = ["MODE"]


class _FullTangent:
    """Train offsets of all weights by the expansion's loss; the base stays. Logits are linear in coefficients."""

    name: Final = "full-tangent"
    settings: Final = WeightSettings
    default_rate: Final = 1e-4
    passes: Final = 6
    joint: Final = False
    kind: Final = "full"
    linearize: Final = "model"
    answers: Final = "tangent"
    linear_in_coefficients: Final = True
    can_be_student: Final = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse checkpointed gradients and quantized weights; see `Mode.check`."""
        from tangora.modes.preparation import refuse_checkpointing, refuse_quantized, refuse_spread  # deferred: torch

        refuse_checkpointing(config)
        refuse_quantized(base, config)
        refuse_spread(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count every parameter."""
        from tangora.modes.preparation import weights_footprint  # deferred: torch

        return weights_footprint(base)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train an offset of every weight; see `Mode.train`."""
        from tangora.modes.outcome import adapter_of  # deferred: torch
        from tangora.modes.session import training
        from tangora.tangent import Offsets, TangentTaskModel
        from tangora.updates.task_vector import Dense

        base = bench.base
        with training(bench, tasks, config) as session:
            offsets = Offsets(base.backbone)
            session.fit(lambda task: TangentTaskModel(base.backbone, task, base, offsets))
            moved = {name: offset.detach().float().cpu() for name, offset in offsets.named().items()}
            updates = {name: Dense(change) for name, change in moved.items() if bool(change.any())}
        return {task.name: adapter_of(base, tasks, config, updates) for task in tasks}

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with the network expanded in the adapter's direction."""
        from tangora.modes.answers import by_expansion  # deferred: torch

        return by_expansion(base, adapter, saved)

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return a `tangora.TangentModel` around the base; see `Mode.load_model`."""
        from tangora.adapters.adapter import load  # deferred: torch
        from tangora.tangent import TangentModel

        return TangentModel(model, load(folder)).eval()


MODE = _FullTangent()
