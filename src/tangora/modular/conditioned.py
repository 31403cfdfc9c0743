"""A task model that says to the added modules of which task its batches are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tangora.tasks.model import TaskModel

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.modular.network import Network
    from tangora.tasks import Base, Task
    from tangora.tasks.contract import Readout
    from tangora.tasks.values import Batch

__all__ = ["ConditionedTaskModel"]


class ConditionedTaskModel(TaskModel):
    """A task model with a network that depends on the task.

    Gradients must not be checkpointed: a forward pass that is repeated in the backward pass would see the last task.

    Args:
        backbone, task, base, readout: as of `TaskModel`.
        network: in the backbone.
        index: the number of the task in the network.
    """

    def __init__(
        self,
        backbone: nn.Module,
        task: Task,
        base: Base,
        readout: Readout | None = None,
        *,
        network: Network,
        index: int,
    ) -> None:
        super().__init__(backbone, task, base, readout)
        self._chosen = (network, index)  # a tuple, so that the network stays a module of the backbone alone

    def _choose(self) -> None:
        network, index = self._chosen
        network.task = index

    def losses(self, inputs: Batch, labels: Tensor) -> Float[Tensor, " batch"]:
        """Return the loss of each row; see `TaskModel.losses`."""
        self._choose()
        return super().losses(inputs, labels)

    def predict_batch(self, batch: Batch) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return answers and losses of a batch's rows."""
        self._choose()
        return super().predict_batch(batch)

    def logits(self, inputs: Batch, labels: Tensor | None = None) -> Float[Tensor, "batch *tokens width"]:
        """Return float32 logits; see `TaskModel.logits`."""
        self._choose()
        return super().logits(inputs, labels)
