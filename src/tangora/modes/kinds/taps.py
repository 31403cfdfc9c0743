"""TAPS (arXiv:2203.16708) on LoRA: a gate per layer decides which layers a task changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tangora.config.gated import GatedAdapterSettings
from tangora.modes.kinds.lora import Lora

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task

__all__ = ["MODE"]


class _Taps(Lora):
    """LoRA with a gate per layer, ``W + 1[s ≥ τ] s_LoRA·BA``, and a penalty on the gates.

    Choose it for adapters that change as few layers as the task needs: the others are the base's, and shared by all
    tasks. The adapter contains the open layers only, and is a plain LoRA.
    """

    name = "taps"
    settings: Final = GatedAdapterSettings  # type: ignore[misc]
    can_be_student = False
    plain_layers = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse what LoRA refuses, and a start that is not the base."""
        from tangora.modes.gating import check_gated_lora  # deferred: torch

        check_gated_lora(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the factors of every site, and a gate for each."""
        from tangora.modes.gating import gated_lora_footprint  # deferred: torch

        return gated_lora_footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train factors and gates of every site; see `Mode.train`."""
        from tangora.modes.gating import train_gated_lora  # deferred: torch

        return train_gated_lora(bench, tasks, config)


MODE = _Taps()
