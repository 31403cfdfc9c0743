"""L-LoRA (arXiv:2310.04742, eq. 5): LoRA with each site expanded to first order at φ₀."""

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


class _LinearizedLora:
    """Each adapted layer is linear in φ, the network between them is not.

    With B₀ = 0, only B is trained. Choose it for adapters to be added: if they share A₀, they add up exactly and keep
    their rank. Its default rate is larger than LoRA's, since B's gradient passes through a small random A₀.
    """

    name: Final = "l-lora"
    settings: Final = AdapterSettings
    default_rate: Final = 5e-3
    passes: Final = 3
    joint: Final = False
    kind: Final = "lora"
    linearize: Final = "module"
    answers: Final = "weights"
    linear_in_coefficients: Final = False
    can_be_student: Final = True
    plain_layers: Final = True

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse targets that match nothing, invalid patterns, and initial values that change the base's weights."""
        from tangora.modes.preparation import check_lora  # deferred: torch

        check_lora(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the factors of every site; one of them may be frozen."""
        from tangora.modes.preparation import lora_footprint  # deferred: torch
        from tangora.tangent.linearization import linearize

        return lora_footprint(base, config, linearize)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the factors of every linearized site; see `Mode.train`."""
        from tangora.modes.low_rank import train_lora  # deferred: torch
        from tangora.tangent.linearization import linearize

        return train_lora(bench, tasks, config, linearize)

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with the updates in the weights."""
        from tangora.modes.answers import by_weights  # deferred: torch

        return by_weights(base, adapter, saved)

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return stock peft's model, linearized at φ₀; see `Mode.load_model`."""
        from tangora.adapters.adapter import load  # deferred: torch
        from tangora.modes.wrapping import expansion_point, in_peft
        from tangora.tangent.linearization import linearize

        wrapped = in_peft(folder, model)
        if (point := expansion_point(load(folder))) is not None:
            linearize(wrapped, initial=point)
        return wrapped.eval()


MODE = _LinearizedLora()
