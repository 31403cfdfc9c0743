"""Routed adapters: experts and the router between them, put together of adapters that were trained before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tangora.config.settings import Frozen
from tangora.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["MODE", "RoutedModeSettings"]


class RoutedModeSettings(Frozen):
    """There is nothing to set: a routed adapter is not trained."""


class _Routed:
    """Answers with the adapters that `tangora.route` makes; it trains none.

    The network is `tangora.modular.routed.RoutedNetwork`. To train experts and a router together, choose ``dyadic``.
    """

    name = "routed"
    settings: Final = RoutedModeSettings
    default_rate: Final = 1e-3
    passes: Final = 1
    joint: Final = False
    kind: Final = "routed"
    linearize: Final = "none"
    answers: Final = "routed"
    linear_in_coefficients: Final = False
    can_be_student: Final = False
    trains: Final = False

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse to train."""
        _refuse(config)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Refuse to train."""
        _refuse(config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Refuse to train."""
        _refuse(config)

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with experts and gates beside the layers."""
        from tangora.modes.modular import by_modules  # deferred: torch
        from tangora.modular.routed import routed_network

        return by_modules(base, adapter, routed_network(adapter.metadata.modules))

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return the model with experts and gates beside its layers; see `Mode.load_model`."""
        from tangora.modes.modular import in_network  # deferred: torch
        from tangora.modular.routed import routed_network

        def make(model: nn.Module, adapter: Adapter) -> Any:
            return routed_network(adapter.metadata.modules)

        return in_network(folder, model, make)


def _refuse(config: FinetuneConfig) -> NoReturn:

    fix = "train experts by train: lora or l-lora, and route them by tangora fuse --method smile, or by an entry of "
    fix += "fusion.methods; train: dyadic trains experts with their router"
    raise ModelError("routed adapters are made of experts, not trained", got=config.train, where="train", fix=fix)


MODE = _Routed()
