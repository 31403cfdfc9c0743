"""Joint LoRA: one LoRA adapter (arXiv:2106.09685), trained on the rows of all tasks at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tangora.config.settings import JointAdapterSettings
from tangora.errors import ModelError
from tangora.modes.kinds.lora import Lora

if TYPE_CHECKING:
    from tangora.config.settings import FinetuneConfig
    from tangora.tasks import Base

__all__ = ["MODE"]


class _JointLora(Lora):
    """One adapter for all tasks. Choose it as the reference for every fusion: it needs all tasks' labels at once.

    ``sampling`` decides which task a batch, or a row, is of. A step sees ``training.batch_size`` rows, whatever the
    number of tasks: for as many rows of each as separate adapters see, multiply ``training.steps`` by it.
    """

    name = "joint-lora"
    settings: Final = JointAdapterSettings  # type: ignore[misc]
    joint: Final = True  # type: ignore[misc]
    can_be_student = False
    fusable: Final = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse what LoRA refuses, and an A₀ for each task."""

        super().check(base, config)
        if config.lora.a_init == "per_task":
            fix = "set a_init: shared"
            raise ModelError("one adapter of all tasks has one A₀", got="per_task", where="lora.a_init", fix=fix)


MODE = _JointLora()
