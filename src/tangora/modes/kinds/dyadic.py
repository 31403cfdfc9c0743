"""MoDE (arXiv:2408.01505): a LoRA with several up-vectors for each rank, among which every token chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tangora.config.dyadic import DyadicSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["MODE"]


class _Dyadic:
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
    linearize: Final = "none"
    answers: Final = "dyadic"
    linear_in_coefficients: Final = False
    can_be_student: Final = False
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

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with the up-vectors beside the layers."""
        from tangora.modes.modular import by_modules  # deferred: torch
        from tangora.modular.dyadic import dyadic_network

        return by_modules(base, adapter, dyadic_network(adapter.metadata.modules))

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return the model with the up-vectors beside its layers; see `Mode.load_model`."""
        from tangora.modes.modular import in_network  # deferred: torch
        from tangora.modular.dyadic import dyadic_network

        def make(model: nn.Module, adapter: Adapter) -> Any:
            return dyadic_network(adapter.metadata.modules)

        return in_network(folder, model, make)


MODE = _Dyadic()
