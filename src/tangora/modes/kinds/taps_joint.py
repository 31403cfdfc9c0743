"""Joint TAPS (arXiv:2203.16708): a LoRA of all tasks, and on top of it, for each task, one with a gate per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tangora.config.gated import GatedJointSettings
from tangora.modes.kinds.lora import Lora

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task

__all__ = ["MODE"]


class _TapsJoint(Lora):
    """A LoRA trained on all tasks, then for each task a gated one on the base with the first in its weights.

    Choose it if the tasks have much in common: what they share is learned from the rows of all, and a task's own
    layers are fewer. A task's adapter is the sum of both, a plain LoRA of twice the rank where its gate is open.
    """

    name = "taps-joint"
    settings: Final = GatedJointSettings  # type: ignore[misc]
    passes: Final = 6  # type: ignore[misc]  # a step of each of the two trainings
    joint: Final = True  # type: ignore[misc]
    can_be_student = False
    plain_layers = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse what TAPS refuses, and an A₀ for each task."""
        from tangora.modes.gating_joint import check_gated_joint  # deferred: torch

        check_gated_joint(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the factors of both adapters, and the gates of one."""
        from tangora.modes.gating_joint import gated_joint_footprint  # deferred: torch

        return gated_joint_footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the shared adapter, then each task's own; see `Mode.train`."""
        from tangora.modes.gating_joint import train_gated_joint  # deferred: torch

        return train_gated_joint(bench, tasks, config)


MODE = _TapsJoint()
