"""HyperGrid (arXiv:2007.05891): grids of gates on feed-forward weights, computed from the task, trained jointly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tangora.config.hypergrid import HyperGridSettings
from tangora.modes.kinds._modules import AddedModules

if TYPE_CHECKING:
    from torch import nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.modular.hypergrid import Grids
    from tangora.tasks import Base, Task

__all__ = ["MODE"]


class _HyperGrid(AddedModules):
    """``W' = W ∘ repeat(g(u vᵀ))`` for every feed-forward weight, with u and v from an embedding of the task.

    Choose it for very small adapters of many tasks that share a base: a task keeps one gate for each block of a weight.
    Adapters contain the logarithms of gates: their mean is the geometric mean of the gates.
    """

    name: Final = "hypergrid"
    settings: Final = HyperGridSettings
    default_rate: Final = 5e-4  # a step moves an entry of v by about 0.8 · width · rate, and gates saturate beyond 1
    passes: Final = 3
    joint: Final = True
    kind: Final = "modules"
    answers: Final = "grids"
    fusable: Final = True

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse decoders, and grids that do not fit the weights; see `Mode.check`."""
        from tangora.modes.grids import check_grids  # deferred: torch

        check_grids(base, config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the factors of the gates and one task's embedding, and the grids of an adapter."""
        from tangora.modes.grids import grids_footprint  # deferred: torch

        return grids_footprint(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the factors of the gates on all tasks; see `Mode.train`."""
        from tangora.modes.grids import train_grids  # deferred: torch

        return train_grids(bench, tasks, config)

    def network(self, backbone: nn.Module, adapter: Adapter) -> Grids:
        """Return a task's gates on the weights; see `AddedModules.network`."""
        from tangora.modes.grids import grids_network  # deferred: torch

        return grids_network(backbone, adapter)


MODE = _HyperGrid()
