"""HyperGrid (arXiv:2007.05891): grids of gates on feed-forward weights, computed from the task, trained jointly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tangora.config.hypergrid import HyperGridSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["MODE"]


class _HyperGrid:
    """``W' = W ∘ repeat(g(u vᵀ))`` for every feed-forward weight, with u and v from an embedding of the task.

    Choose it for very small adapters of many tasks that share a base: a task keeps one gate for each block of a weight.
    Adapters contain the logarithms of gates: their mean is the geometric mean of the gates.
    """

    name: Final = "hypergrid"
    settings: Final = HyperGridSettings
    default_rate: Final = 5e-3
    passes: Final = 3
    joint: Final = True
    kind: Final = "modules"
    linearize: Final = "none"
    answers: Final = "grids"
    linear_in_coefficients: Final = False
    can_be_student: Final = False
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

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with gated weights."""
        from tangora.modes.grids import answer_by_grids  # deferred: torch

        return answer_by_grids(base, adapter)

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return the base with gated weights; see `Mode.load_model`."""
        from tangora.modes.grids import load_with_grids  # deferred: torch

        return load_with_grids(folder, model)


MODE = _HyperGrid()
