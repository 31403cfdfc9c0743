"""DoRA (arXiv:2402.09353): LoRA, with a trained norm for every row of the adapted weights."""

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

__all__ = ["MODE"]


class _Dora:
    """Each adapted weight is ``m · (W + s·BA) / ‖W + s·BA‖``, row by row, with trained A, B and m.

    The update depends on the base's weights and has full rank: fusions of DoRA adapters are no longer DoRA's, and have
    the rank that they are cut to. An adapter is read with its base, which is looked for where it was in training.
    """

    name: Final = "dora"
    settings: Final = AdapterSettings
    default_rate: Final = 1e-3
    passes: Final = 3
    joint: Final = False
    kind: Final = "lora"
    linearize: Final = "none"
    answers: Final = "weights"
    linear_in_coefficients: Final = False
    can_be_student: Final = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse what LoRA refuses, rounded weights, a base without files, and a start that is not the base."""
        from tangora.modes.low_rank import check_dora  # deferred: torch

        check_dora(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count both factors and the norms of every site."""
        from tangora.modes.preparation import lora_footprint  # deferred: torch

        return lora_footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the factors and norms of every site; see `Mode.train`."""
        from tangora.modes.low_rank import train_dora  # deferred: torch

        return train_dora(bench, tasks, config)

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


MODE = _Dora()
