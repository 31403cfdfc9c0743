"""Bottleneck adapters (arXiv:1902.00751): two small linear layers behind, or beside, the sub-layers of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tangora.config.bottleneck import BottleneckSettings
from tangora.modes.kinds._modules import AddedModules

if TYPE_CHECKING:
    from torch import nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.modular.bottleneck.adapters import Bottlenecks
    from tangora.tasks import Base, Task

__all__ = ["MODE", "Bottleneck"]


class Bottleneck(AddedModules):
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
    answers: Final = "modules"

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

    def network(self, backbone: nn.Module, adapter: Adapter) -> Bottlenecks:
        """Return adapters of the recorded sizes; see `AddedModules.network`."""
        from tangora.modes.bottleneck import baked_network  # deferred: torch

        return baked_network(backbone, adapter)


MODE = Bottleneck()
