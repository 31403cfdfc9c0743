"""Score an adapter of an expansion both ways: in the expansion, and as the ordinary network that plain peft loads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tangora.adapters.adapter import Adapter
from tangora.modes.contract import mode_of
from tangora.tasks.metrics import score
from tangora.tasks.model import predict
from tangora.tasks.splits import sample

if TYPE_CHECKING:
    from tangora.tasks.base import Base
    from tangora.tasks.values import Split, Task

__all__ = ["as_weights", "scored_both_ways"]

_ROWS, _BATCH = 512, 64


def as_weights(adapter: Adapter) -> Adapter:
    """Return an adapter that answers as the ordinary network with these weights, whatever it was trained in.

    That is what plain peft makes of its files, or for all weights the base to which the changes were added.

    >>> from tangora.adapters.metadata import Metadata
    >>> as_weights(Adapter({}, Metadata(train="tangent", linearize="model"))).metadata.train
    'lora'
    """
    train = "lora" if adapter.metadata.of_kind.has_factors else "full"
    return replace(adapter, metadata=adapter.metadata.model_copy(update={"train": train, "linearize": "none"}))


def scored_both_ways(base: Base, adapter: Adapter, task: Task) -> Adapter:
    """Return an adapter of an expansion with its scores on validation rows, both ways; any other one as it is.

    Args:
        base: as before afterwards.
        adapter: of the task.
        task: without a validation split, nothing is scored.
    """
    if not adapter.metadata.expanded or "validation" not in task.splits:
        return adapter
    split = task.splits["validation"]
    rows = split.select(sample(len(split), _ROWS, seed=0))
    scores, ordinary = ({task.name: _score(base, one, task, rows)} for one in (adapter, as_weights(adapter)))
    return adapter.with_scores(scores, split="validation", rows=len(rows), as_weights=ordinary)


def _score(base: Base, adapter: Adapter, task: Task, rows: Split) -> float:
    with mode_of(adapter).answering(base, adapter, {}) as model_of:
        return float(score(task.metric, predict(model_of(task), rows, _BATCH).values, rows.targets))
