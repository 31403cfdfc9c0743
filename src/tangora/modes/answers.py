"""Two ways to answer with an adapter: its updates added to the weights, or the network expanded in its direction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from tangora.adapters.application import applied
from tangora.tangent import TangentTaskModel, at_start, direction_of
from tangora.tasks.fitting import of_backbone
from tangora.tasks.model import TaskModel, make_readout

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base, Task

__all__ = ["by_expansion", "by_weights"]


@contextlib.contextmanager
def by_weights(base: Base, adapter: Adapter, saved: dict[str, Tensor]) -> Iterator[Callable[[Task], TaskModel]]:
    """Add the updates to the base's weights for the length of the block; see `Mode.answering`."""
    with applied(base.backbone, of_backbone(adapter, base), saved):
        yield lambda task: TaskModel(base.backbone, task, base, make_readout(task, base, adapter))


@contextlib.contextmanager
def by_expansion(base: Base, adapter: Adapter, saved: dict[str, Tensor]) -> Iterator[Callable[[Task], TaskModel]]:
    """Expand the network at φ₀ in the direction of the adapter's task vector; see `Mode.answering`."""
    fitted = of_backbone(adapter, base)
    with at_start(base.backbone, [fitted], saved):
        direction = direction_of(fitted, base.backbone)
        yield lambda task: TangentTaskModel(base.backbone, task, base, direction, make_readout(task, base, adapter))
