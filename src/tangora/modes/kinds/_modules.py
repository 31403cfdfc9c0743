"""The answering half of modes whose adapters are modules that are added to the network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.modular.network import Network
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["AddedModules"]


class AddedModules:
    """Makes the network of an adapter again, and puts it into the base. Derive from it, and implement `network`."""

    linearize: Final = "none"
    linear_in_coefficients: Final = False
    can_be_student: Final = False

    @abstractmethod
    def network(self, backbone: nn.Module, adapter: Adapter) -> Network:
        """Return the network of an adapter's settings, without its tensors.

        Args:
            backbone: that it will be put into.
            adapter: with the settings in ``metadata.modules``.

        Raises:
            AdapterError: the settings are missing or invalid.
            ModelError: they do not fit the backbone.
        """

    def answering_part(self, adapter: Adapter) -> Adapter:
        """Return an adapter without the tensors that it does not answer with; most have none."""
        return adapter

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with the network in the hooks of the base."""
        from tangora.modes.modular import by_modules  # deferred: torch

        return by_modules(base, self.answering_part(adapter), self.network)

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return the base with the network in its hooks; see `Mode.load_model`."""
        from tangora.adapters.adapter import load  # deferred: torch
        from tangora.modes.modular import in_network

        return in_network(self.answering_part(load(folder)), model, self.network)
