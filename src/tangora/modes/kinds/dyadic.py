"""MoDE (arXiv:2408.01505): a LoRA with several up-vectors for each rank, among which every token chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tangora.config.dyadic import DyadicSettings
from tangora.modes.kinds._modules import AddedModules

if TYPE_CHECKING:
    from torch import nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.modular.dyadic import DyadicNetwork
    from tangora.tasks import Base, Task

__all__ = ["MODE"]


class _Dyadic(AddedModules):
    """One adapter of all tasks: ``y = W x + s Σⱼ (aⱼ·x) Σᵢ Rⱼᵢ(x) bⱼᵢ``, with ``Rⱼ(x) = softmax(W_{R,j} x)``.

    The down-projections aⱼ are shared, and each has m up-vectors bⱼᵢ; W_{R,j} decides for every token and rank how much
    of each is used (arXiv:2408.01505, section 3). Choose it for several tasks with labelled rows at hand, if a joint
    LoRA is too small for all of them. Most of its numbers are the router's; ``router: core`` has few.

    The paper trains by Adafactor with weights of 1 in place of s, and does not state the router's initial values.
    """

    name: Final = "dyadic"
    settings: Final = DyadicSettings
    default_rate: Final = 1e-3
    passes: Final = 3
    joint: Final = True
    kind: Final = "routed"
    answers: Final = "dyadic"
    fusable: Final = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse targets that match nothing, or no linear layer."""
        from tangora.modes.dyadic import shape_of  # deferred: torch

        shape_of(base, config.settings)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count A, the up-vectors and the routers of every site."""
        from tangora.modes.dyadic import footprint  # deferred: torch

        return footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train on all tasks, and return the same adapter for each; see `Mode.train`."""
        from tangora.modes.dyadic import train  # deferred: torch

        return train(bench, tasks, config)

    def network(self, backbone: nn.Module, adapter: Adapter) -> DyadicNetwork:
        """Return up-vectors beside the layers; see `AddedModules.network`."""
        from tangora.modular.dyadic import dyadic_network  # deferred: torch

        return dyadic_network(adapter.metadata.modules)


MODE = _Dyadic()
