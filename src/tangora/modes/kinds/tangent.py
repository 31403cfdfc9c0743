"""Tangent LoRA (arXiv:2310.04742, eq. 4): the whole network expanded to first order in φ, at φ₀."""

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


class _Tangent:
    """Logits are linear in φ, and so in every fusion coefficient.

    Choose it to compare many fusions or to search for coefficients: neither needs a forward pass. A forward pass of the
    expansion costs about two of the network's; `tangora.distill` turns the adapter into an ordinary LoRA.
    """

    name: Final = "tangent"
    settings: Final = AdapterSettings
    default_rate: Final = 5e-3
    passes: Final = 6
    joint: Final = False
    kind: Final = "lora"
    linearize: Final = "model"
    answers: Final = "tangent"
    linear_in_coefficients: Final = True
    can_be_student: Final = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse targets that match nothing, initial values that change the base, and checkpointed gradients."""
        from tangora.modes.preparation import check_lora, refuse_checkpointing, refuse_spread  # deferred: torch

        check_lora(base, config)
        refuse_checkpointing(config)
        refuse_spread(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the factors of every site; one of them may be frozen."""
        from tangora.modes.preparation import lora_footprint  # deferred: torch
        from tangora.tangent import expand_lora

        return lora_footprint(base, config, expand_lora)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the factors by the expansion's loss; see `Mode.train`."""
        from tangora.modes.low_rank import train_lora  # deferred: torch
        from tangora.tangent import TangentTaskModel, expand_lora

        return train_lora(bench, tasks, config, expand_lora, TangentTaskModel)

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


MODE = _Tangent()
