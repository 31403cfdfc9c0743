"""PHA: bottleneck adapters that a hypernetwork generates from a prototype of each task (arXiv:2310.11670)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tangora.config.pha import PrototypeSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["MODE"]


class _PrototypeHyperAdapter:
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
    linearize: Final = "none"
    answers: Final = "pha"
    linear_in_coefficients: Final = False
    can_be_student: Final = False
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

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with the task's adapters in the base."""
        from tangora.modes.modular import by_modules  # deferred: torch
        from tangora.modes.prototype_parts import answering_parts

        network, own = answering_parts(adapter)
        return by_modules(base, own, network)

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return the base with the task's adapters; see `Mode.load_model`."""
        from tangora.adapters.adapter import load  # deferred: torch
        from tangora.modes.modular import with_tensors
        from tangora.modes.prototype_parts import answering_parts
        from tangora.modular.network import attach

        network, own = answering_parts(load(folder))
        attach(model, with_tensors(network, own)).pop_all()
        return model.eval()


MODE = _PrototypeHyperAdapter()
