"""TAPS (arXiv:2203.16708) on the weights: full fine-tuning with a gate per layer, as in the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tangora.config.gated import GatedWeightSettings
from tangora.modes.kinds.full import Full

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task

__all__ = ["MODE"]


class _TapsFull(Full):
    """Full fine-tuning with a gate per layer, ``W̄ + 1[s ≥ τ] δ``, and a penalty on the gates.

    Choose it instead of ``full`` for the layers that a task does not need to stay the base's. The adapter contains the
    changes of open layers and of normalization layers, and is as large as these.
    """

    name = "taps-full"
    settings: Final = GatedWeightSettings  # type: ignore[misc]
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


MODE = _TapsFull()
