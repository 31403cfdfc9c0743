"""TAPS (arXiv:2203.16708) on the weights: full fine-tuning with a gate per layer, as in the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tangora.config.gated import GatedWeightSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["MODE"]


class _TapsFull:
    """Full fine-tuning with a gate per layer, ``W̄ + 1[s ≥ τ] δ``, and a penalty on the gates.

    Choose it instead of ``full`` for the layers that a task does not need to stay the base's. The adapter contains the
    changes of open layers and of normalization layers, and is as large as these.
    """

    name: Final = "taps-full"
    settings: Final = GatedWeightSettings
    default_rate: Final = 5e-5
    passes: Final = 3
    joint: Final = False
    kind: Final = "full"
    linearize: Final = "none"
    answers: Final = "weights"
    linear_in_coefficients: Final = False
    can_be_student: Final = False
    keeps_start: Final = True
    """It holds the weights of before beside those that it trains; see `tangora.modes.memory`."""

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse weights that take no small steps, and a model without layers to gate; see `Mode.check`."""
        from tangora.modes.gating import check_gated_weights  # deferred: torch

        check_gated_weights(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the parameters of all gated layers, open or not, their gates, and the normalization layers."""
        from tangora.modes.gating import gated_weights_footprint  # deferred: torch

        return gated_weights_footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train weights and gates in place, and restore the weights; see `Mode.train`."""
        from tangora.modes.gating import train_gated_weights  # deferred: torch

        return train_gated_weights(bench, tasks, config)

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


MODE = _TapsFull()
