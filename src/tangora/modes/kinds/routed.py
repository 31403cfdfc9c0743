"""Routed adapters: experts and the router between them, put together of adapters that were trained before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from tangora.config.settings import Frozen
from tangora.errors import ModelError
from tangora.modes.kinds._modules import AddedModules

if TYPE_CHECKING:
    from torch import nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.modular.routed import RoutedNetwork
    from tangora.tasks import Base, Task

__all__ = ["MODE", "RoutedModeSettings"]


class RoutedModeSettings(Frozen):
    """There is nothing to set: a routed adapter is not trained."""


class _Routed(AddedModules):
    """Answers with the adapters that `tangora.route` makes; it trains none.

    The network is `tangora.modular.routed.RoutedNetwork`. To train experts and a router together, choose ``dyadic``.
    """

    name = "routed"
    settings: Final = RoutedModeSettings
    default_rate: Final = 1e-3
    passes: Final = 1
    joint: Final = False
    kind: Final = "routed"
    answers: Final = "routed"
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

    def network(self, backbone: nn.Module, adapter: Adapter) -> RoutedNetwork:
        """Return experts and gates beside the layers; see `AddedModules.network`."""
        from tangora.modular.routed import routed_network  # deferred: torch

        return routed_network(adapter.metadata.modules)


def _refuse(config: FinetuneConfig) -> NoReturn:

    fix = "train experts by train: lora or l-lora, and route them by tangora fuse --method smile, or by an entry of "
    fix += "fusion.methods; train: dyadic trains experts with their router"
    raise ModelError("routed adapters are made of experts, not trained", got=config.train, where="train", fix=fix)


MODE = _Routed()
