"""LoRA (arXiv:2106.09685): low-rank updates ``s·BA`` of the targeted layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tangora.config.settings import AdapterSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["MODE", "Lora"]


class Lora:
    """The ordinary, non-linear network with LoRA layers. Choose it as the baseline for the other modes."""

    name = "lora"
    settings: Final = AdapterSettings
    default_rate: Final = 1e-3
    passes: Final = 3
    joint: Final = False
    kind: Final = "lora"
    linearize: Final = "none"
    answers: Final = "weights"
    linear_in_coefficients: Final = False
    can_be_student = True
    plain_layers = True

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse targets that match nothing, invalid patterns, and initial values that change the base's weights."""
        from tangora.modes.preparation import check_lora  # deferred: torch

        check_lora(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the parameters of every site."""
        from tangora.modes.preparation import lora_footprint  # deferred: torch

        return lora_footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the factors of every site; see `Mode.train`."""
        from tangora.modes.low_rank import train_lora  # deferred: torch

        return train_lora(bench, tasks, config)

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with the updates in the weights."""
        from tangora.modes.answers import by_weights  # deferred: torch

        return by_weights(base, adapter, saved)

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return stock peft's model; see `Mode.load_model`."""
        from tangora.modes.wrapping import in_peft  # deferred: torch

        return in_peft(folder, model).eval()


MODE = Lora()
