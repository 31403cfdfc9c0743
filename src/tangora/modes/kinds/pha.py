"""PHA: bottleneck adapters that a hypernetwork generates from a prototype of each task (arXiv:2310.11670)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tangora.config.pha import PrototypeSettings
from tangora.modes.kinds._modules import AddedModules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.modular.pha.networks import ParallelAdapters
    from tangora.tasks import Base, Task

__all__ = ["MODE"]


class _PrototypeHyperAdapter(AddedModules):
    """Prototype-based HyperAdapter (arXiv:2310.11670): ``h + FFN(LN h) + A(LN h)``, A made of the task's prototype.

    An encoder-decoder has adapters that all tasks share in the encoder, and in the decoder adapters that a network
    generates from the prototype of the task and an embedding of the layer. Two contrastive losses pull the encodings
    of a task's rows together, and the task's prototype to them. An encoder of texts, which the paper does not treat,
    has the shared adapters in its lower half and the generated ones in its upper half.

    Choose it if tasks have few rows each, and if new tasks are to follow: a new one starts from the nearest prototype.
    Each task's adapter is plain: it answers without the hypernetwork.
    """

    name = "pha"
    settings: Final = PrototypeSettings
    default_rate: Final = 3e-4
    passes: Final = 3
    joint: Final = True
    kind: Final = "modules"
    answers: Final = "pha"
    extends: Final = True

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse other families and types of models, checkpointed gradients, and a start that does not fit."""
        from tangora.modes.prototypes import check_prototypes  # deferred: torch

        check_prototypes(base, config)

    def reads(self, config: FinetuneConfig) -> list[object]:
        """Return what determines the network that a training starts from; see `Mode`."""
        if config.settings.start is None:
            return []
        from tangora.adapters.adapter import load  # deferred: torch

        start = load(config.settings.start)
        return [start.fingerprint, start.metadata.modules]

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the parameters with one prototype; each further task has one more."""
        from tangora.modes.prototypes import footprint_of  # deferred: torch

        return footprint_of(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train generator, prototypes, retriever and shared adapters, and bake each task's adapter."""
        from tangora.modes.prototypes import train_prototypes  # deferred: torch

        return train_prototypes(bench, tasks, config)

    def network(self, backbone: nn.Module, adapter: Adapter) -> ParallelAdapters:
        """Return a task's own and shared adapters; see `AddedModules.network`."""
        from tangora.modes.prototype_parts import parallel_adapters  # deferred: torch

        return parallel_adapters(adapter)

    def answering_part(self, adapter: Adapter) -> Adapter:
        """Return the adapter without what new tasks start from."""
        from tangora.modes.prototype_parts import answering_part  # deferred: torch

        return answering_part(adapter)


MODE = _PrototypeHyperAdapter()
