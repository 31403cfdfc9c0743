"""Both inputs of the present block, for each batch of every task: in the task's expert, and in the merged model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.adapters.application import applied
from tangora.errors import ModelError
from tangora.modes.answers import by_weights
from tangora.polishing.blocks import Blocks, Passing, blocks_of
from tangora.tasks.fitting import of_backbone
from tangora.tasks.model import TaskModel, make_readout
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.polishing.lessons import Lesson
    from tangora.tasks import Base

__all__ = ["Dual", "Stream", "dual_of", "expert_of", "refuse_base"]

Load = Callable[[], "Adapter"]


@dataclass
class Stream:
    """The batches of a task at the present block.

    Attributes:
        task: its name.
        load: loads the expert.
        expert: each batch in the expert.
        merged: the same batches in the merged model.
    """

    task: str
    load: Load
    expert: list[Passing]
    merged: list[Passing]

    def batches(self) -> Iterator[tuple[Passing, Passing]]:
        """Yield each batch in the expert and in the merged model."""
        return zip(self.expert, self.merged, strict=True)


@dataclass(frozen=True)
class Dual:
    """The streams of all tasks, and the blocks that they pass through."""

    base: Base
    blocks: Blocks
    streams: Sequence[Stream]

    def expert_weights(self, index: int, stream: Stream) -> dict[str, Tensor]:
        """Load the expert of a stream, and return what it changes in a block; the expert is dropped again."""
        return self.blocks.weights(index, expert_of(self.base, stream.load))

    @torch.no_grad()
    def advance_expert(self, index: int, stream: Stream, weights: Mapping[str, Tensor]) -> None:
        """Move a stream's batches to the next block, in the expert."""
        for passing in stream.expert:
            passing.hidden = self.blocks.run(index, passing, weights)

    @torch.no_grad()
    def advance_merged(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Move all batches to the next block, in the merged model."""
        for stream in self.streams:
            for passing in stream.merged:
                passing.hidden = self.blocks.run(index, passing, weights)


def dual_of(
    base: Base, lessons: Sequence[Lesson], experts: Mapping[str, Load], merged: Adapter, batch_size: int, *, order: bool
) -> Dual:
    """Pass the rows of all lessons as far as the first block.

    Args:
        base: of the experts; as before afterwards.
        lessons: of the tasks.
        experts: task -> loads its expert, which is dropped again.
        merged: the merged model's changes before its first block.
        batch_size: rows of a batch.
        order: whether rows stay in their order; if not, rows of similar length share a batch.

    Raises:
        ModelError: the backbone is no sequence of blocks, or an expert does not answer with weights.
    """
    blocks: Blocks | None = None
    streams = []
    with evaluating(base.backbone):
        for one in lessons:
            load = experts[one.task.name]
            model = TaskModel(base.backbone, one.task, base, make_readout(one.task, base, one.expert))
            batches = _batches(one, model, batch_size, order=order)
            blocks = blocks or blocks_of(base, model, batches[0])
            with by_weights(base, expert_of(base, load), {}):
                theirs = [blocks.enter(model, batch) for batch in batches]
            with applied(base.backbone, merged):
                ours = [blocks.enter(model, batch) for batch in batches]
            streams.append(Stream(one.task.name, load, theirs, ours))
    assert blocks is not None
    return Dual(base, blocks, streams)


def _batches(lesson: Lesson, model: TaskModel, size: int, *, order: bool) -> list[dict[str, Tensor]]:
    device = next(model.backbone.parameters()).device
    if order:
        rows = lesson.rows.dataset()
        picks = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        made = [model.collator([rows[row] for row in pick]) for pick in picks]
    else:
        made = [batch for _, batch in lesson.rows.batches(size, model.collator)]
    return [{name: value.to(device) for name, value in batch.items()} for batch in made]


def expert_of(base: Base, load: Load) -> Adapter:
    """Return an expert with the backbone's names.

    Raises:
        ModelError: it does not answer with changed weights.
    """
    adapter = load()
    kind, about = adapter.metadata.of_kind, adapter.metadata
    if kind.adds_modules or about.linearize == "model":
        got = f"{about.task or 'an expert'}, {'tangent' if about.linearize == 'model' else about.kind}"
        what, fix = "this expert changes no weights of blocks that could be followed", "leave objective and initial out"
        raise ModelError(what, got=got, where="polish, layer by layer", fix=fix)
    return of_backbone(adapter, base)


def refuse_base(base: Base) -> None:
    """Refuse a base whose blocks cannot be called with other weights.

    Raises:
        ModelError: names the key.
    """
    what, fix = "a polish layer by layer needs the base's weights in float32", "leave objective and initial out"
    if base.config.weights != "float32":
        raise ModelError(what, got=base.config.weights, where="base.weights_dtype", fix=fix)
    if base.config.device_map is not None:
        raise ModelError("a polish layer by layer needs the model on one device", where="base.device_map", fix=fix)
