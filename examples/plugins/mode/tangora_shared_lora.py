"""One LoRA for all tasks, trained on their mixture in one job: what fusing separate adapters is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.kinds import KindName
from tangora.config.settings import AdapterSettings, FinetuneConfig
from tangora.errors import ModelError
from tangora.modes.answers import by_weights
from tangora.modes.contract import Bench, Footprint
from tangora.modes.low_rank import train_lora
from tangora.modes.preparation import check_lora, lora_footprint
from tangora.modes.wrapping import in_peft
from tangora.tasks.base import Base
from tangora.tasks.model import TaskModel
from tangora.tasks.values import Task


class JointLora:
    """Every task gets the same adapter; batches of the tasks take turns."""

    name = "shared-lora"
    settings = AdapterSettings
    default_rate = 1e-3
    passes = 3
    joint = True
    kind: KindName = "lora"
    linearize: Literal["none", "module", "model"] = "none"
    answers = "weights"
    linear_in_coefficients = False
    can_be_student = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """What LoRA refuses, and an A₀ of each task's own."""
        check_lora(base, config)
        if config.lora.a_init == "per_task":
            raise ModelError("one adapter has one A₀", got="per_task", where="lora.a_init", fix="set a_init: shared")

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """That of a LoRA."""
        return lora_footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """One training, one adapter, under every task's name."""
        return train_lora(bench, tasks, config)

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """With the updates in the weights."""
        return by_weights(base, adapter, saved)

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Stock peft's model."""
        return in_peft(folder, model).eval()


MODE = JointLora()
