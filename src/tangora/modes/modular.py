"""Train modules that are added to the network, make an adapter of them, and answer with it: shared by their modes.

make ─▶ Network ─ adding ─▶ Session.fit ─▶ modules_adapter ─▶ tangora.json (settings), modules.safetensors
                                                 │
                   by_modules, in_network ◀──────┘   make again from the settings, and load the tensors
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.errors import AdapterError, TangoraError
from tangora.modes.contract import Footprint
from tangora.modes.outcome import adapter_of
from tangora.modes.session import Session, training
from tangora.modular.network import Network, attach, attached
from tangora.tasks.model import TaskModel, make_readout
from tangora.updates.task_vector import Dense, Update

if TYPE_CHECKING:
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench
    from tangora.tasks import Base, Task

__all__ = [
    "MakeNetwork",
    "adding",
    "by_modules",
    "in_network",
    "modules_adapter",
    "modules_footprint",
    "network_of",
    "with_tensors",
]

_N = TypeVar("_N", bound=Network)
MakeNetwork: TypeAlias = Callable[[nn.Module, Adapter], _N]
"""A backbone and an adapter -> the network of the adapter's settings, without its tensors."""


@contextlib.contextmanager
def adding(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig, network: Network) -> Iterator[Session]:
    """Open a training (`tangora.modes.session.training`) with a network in the base; take it out at the end."""
    with training(bench, tasks, config) as session, attached(bench.base.backbone, network):
        yield session


def modules_adapter(
    base: Base,
    tasks: Sequence[Task],
    config: FinetuneConfig,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> Adapter:
    """Return an adapter that consists of the parameters of added modules.

    Args:
        base, tasks, config: as of `tangora.modes.outcome.adapter_of`.
        tensors: name -> value, as in the ``state_dict`` of the network.
        settings: what the mode makes the network of, as JSON.
    """
    updates: dict[str, Update] = {n: Dense(value.detach().float().cpu().clone()) for n, value in tensors.items()}
    made = adapter_of(base, tasks, config, updates)
    return replace(made, metadata=made.metadata.model_copy(update={"modules": dict(settings)}))


def with_tensors(network: _N, adapter: Adapter) -> _N:
    """Load an adapter's tensors into a network, freeze it, and return it.

    Raises:
        AdapterError: names or shapes differ; or a value is none that the network can have.
    """
    _refuse_others(network, adapter)
    network.load_state_dict({name: update.dense() for name, update in adapter.updates.items()})
    network.check_values()
    network.requires_grad_(False)
    return network


def network_of(make: MakeNetwork[_N], backbone: nn.Module, adapter: Adapter) -> _N:
    """Make the network of an adapter again, with the adapter's tensors, frozen.

    Args:
        make: backbone and adapter -> a network of the recorded settings, without the adapter's tensors.
        backbone: that it will be put into.
        adapter: of kind ``modules`` or ``routed``.

    Raises:
        AdapterError: no network can be made of the settings, or the tensors are those of another one.
        ModelError: the settings do not fit the backbone.
    """
    try:
        with torch.device("meta"):  # sizes that the file does not have cost no memory
            _refuse_others(make(backbone, adapter), adapter)
        network = make(backbone, adapter)
    except TangoraError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as cause:
        reason, fix = " ".join(str(cause).split())[:200], "copy the adapter's folder again"
        what = f"tangora.json does not say what the modules of {adapter.metadata.train} are made of ({reason})"
        raise AdapterError(what, got=adapter.metadata.modules, where="modules", fix=fix) from cause
    return with_tensors(network, adapter)


def _refuse_others(network: Network, adapter: Adapter) -> None:
    """Refuse an adapter whose tensors are not those of a network; the network may be on the meta device."""
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(update.shape) for name, update in adapter.updates.items()}
    if odd := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        what = f"the file does not fit the modules that {adapter.metadata.train} makes of tangora.json"
        got = f"{odd[0]} of shape {given.get(odd[0])}, expected {own.get(odd[0])}"
        raise AdapterError(what, got=got, fix="copy the adapter's folder again")


@contextlib.contextmanager
def by_modules(base: Base, adapter: Adapter, make: MakeNetwork[Network]) -> Iterator[Callable[[Task], TaskModel]]:
    """Answer with a network in the base for the length of the block; see `Mode.answering`.

    Args:
        base: as before afterwards.
        adapter: of kind ``modules`` or ``routed``.
        make: as of `network_of`.
    """
    with attached(base.backbone, network_of(make, base.backbone, adapter)):
        yield lambda task: TaskModel(base.backbone, task, base, make_readout(task, base, adapter))


def in_network(adapter: Adapter, model: nn.Module, make: MakeNetwork[Network]) -> nn.Module:
    """Put an adapter's network into a model for good, and return the model, in evaluation mode; see `Mode.load_model`.

    Args:
        adapter: of kind ``modules`` or ``routed``.
        model: its base.
        make: as of `network_of`.
    """
    attach(model, network_of(make, model, adapter)).pop_all()
    return model.eval()


def modules_footprint(network: nn.Module, sites: int, adapted: int = 0, kept: int | None = None) -> Footprint:
    """Count the parameters of a network.

    Args:
        network: with gradients on for what is trained.
        sites: layers that it changes.
        adapted: numbers of the base's weights that it changes.
        kept: numbers in one adapter's file; by default all of them.
    """
    total = sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Footprint(sites, trainable, 4 * (total if kept is None else kept), adapted)
