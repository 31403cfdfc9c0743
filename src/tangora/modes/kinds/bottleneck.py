"""Bottleneck adapters (arXiv:1902.00751): two small linear layers behind, or beside, the sub-layers of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tangora.config.bottleneck import BottleneckSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["MODE", "Bottleneck"]


class Bottleneck:
    """Adapters of one task: ``y + W_up act(W_down y + b_down) + b_up`` for the output y of a sub-layer.

    (arXiv:1902.00751.) With ``form: parallel`` they read the input of the sub-layer in place of its output
    (arXiv:2110.04366). ``W_up`` begins at 0, so that training begins at the base. Choose it as the reference for
    `hyperformer`, `polyhistor` and `polyhistor-lite`, which write such adapters, or for a base whose layers LoRA cannot
    adapt. Of the paper it differs in that layer norms stay frozen, and in one adapter for a layer by default.

    Adapters are not fused: their function is not linear in their weights.
    """

    name = "bottleneck"
    settings: type[BottleneckSettings] = BottleneckSettings
    default_rate: Final = 1e-3
    passes: Final = 3
    joint = False
    kind: Final = "modules"
    linearize: Final = "none"
    answers: Final = "modules"
    linear_in_coefficients: Final = False
    can_be_student: Final = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse places that the base lacks, and a reduction beyond their width."""
        self.footprint(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the weights of every adapter."""
        from tangora.modes.bottleneck import own_footprint  # deferred: torch

        return own_footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the adapters of a task; see `Mode.train`."""
        from tangora.modes.bottleneck import train_own  # deferred: torch

        return train_own(bench, tasks, config)

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with the adapters in the hooks of the base."""
        from tangora.modes.bottleneck import baked_network  # deferred: torch
        from tangora.modes.modular import by_modules  # deferred: torch

        return by_modules(base, adapter, baked_network(base.backbone, adapter))

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return the base with the adapters in its hooks; see `Mode.load_model`."""
        from tangora.modes.bottleneck import baked_network  # deferred: torch
        from tangora.modes.modular import in_network  # deferred: torch

        return in_network(folder, model, baked_network)


MODE = Bottleneck()
