"""An artefact's own files as a model of one of its tasks: its base, its record, its head, in the form of its mode.

    folder ── open_task ──> Opened: adapter, base, task ── put_in ──> TaskModel, with the adapter in the base
                                                     └── TaskNetwork: rows or inputs ──> logits

The folder holds an adapter; or a checkpoint that adapters were merged into, which is a base with nothing to add.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from tangora.adapters.adapter import Adapter, load_beside
from tangora.adapters.contract import holds_adapter
from tangora.adapters.heads import read_heads, read_records
from tangora.adapters.metadata import BaseInfo, read_metadata
from tangora.checkpoints.sidecars import LINEAGE
from tangora.config.tasks import base_settings
from tangora.errors import ArgumentError, FileError, ModelError
from tangora.modes.belonging import refuse_another_base
from tangora.modes.contract import mode_of
from tangora.storage.checkpoint import CONFIG, open_checkpoint
from tangora.storage.hub import located
from tangora.support.files import inside, read_json
from tangora.support.machine import Machine
from tangora.support.seams import FAMILIES
from tangora.tasks.base import Base
from tangora.tasks.contract import names_by_backbone
from tangora.tasks.recorded import chosen_record, encoded, recorded_base, recorded_task, settings_of
from tangora.tasks.rows import table_of

if TYPE_CHECKING:
    from tangora.adapters.heads import HeadRecord
    from tangora.storage.checkpoint import Checkpoint
    from tangora.tasks.model import TaskModel
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch, Split, Task

__all__ = ["BaseLike", "Opened", "TaskNetwork", "inputs_of", "open_task", "put_in"]

BaseLike: TypeAlias = "Base | str | os.PathLike[str]"
"""A loaded base, its folder, or its Hub id."""

_BASE = "base=, or --base"
_DTYPES = {"BF16": "bfloat16", "F16": "float16"}
_FIX = f"give the base that the adapters were merged into as {_BASE}"


@dataclass(frozen=True)
class Opened:
    """An artefact that has been read, with what one of its tasks needs.

    Attributes:
        adapter: without updates for a checkpoint.
        base: as loaded.
        task: without rows.
    """

    adapter: Adapter
    base: Base
    task: Task

    def answering(self, saved: dict[str, Tensor]) -> contextlib.AbstractContextManager[Callable[[Task], TaskModel]]:
        """Return a context in which models answer with the adapter; see `tangora.modes.contract.Mode.answering`."""
        return mode_of(self.adapter).answering(self.base, self.adapter, saved)


def open_task(
    folder: str | os.PathLike[str],
    task: str | None,
    base: BaseLike | None,
    machine: Machine,
    *,
    trust: bool = False,
    same_base: bool = False,
) -> Opened:
    """Read an artefact, and load the base of one of its tasks.

    Args:
        folder: of an adapter, or of a checkpoint with ``heads/``; or a name on the Hub.
        task: a name; None if there is only one.
        base: by default the one that the artefact names.
        machine: the machine on which a base is loaded.
        trust: run code from the base's repository.
        same_base: accept a base with other weights than the recorded ones.

    Raises:
        ArgumentError: there is no such task; or several and no name; or the base was loaded with other settings.
        FileError: the folder holds neither.
        ModelError: the base cannot be loaded, or is another one.
    """
    path = located(folder)
    if not path.exists():
        fix = "give the folder of an adapter, or of a merged checkpoint; or org/name of the Hub"
        raise FileError("no such folder", where=path, fix=fix)
    if not holds_adapter(path):
        return _open_checkpoint(path, task, base, machine, trust=trust, same_base=same_base)
    adapter = load_beside(path, *_where(base, path))
    name, record = chosen_record(adapter.records, task, path)
    loaded = _base(base, _found(adapter.metadata.base, path), record, machine, trust)
    refuse_another_base(adapter, loaded, same_base=same_base)
    return Opened(adapter, loaded, recorded_task(name, record, loaded))


def _where(base: BaseLike | None, path: Path) -> tuple[str | None, str | None]:
    """Return name and revision of the base that an adapter is opened with."""
    if isinstance(base, Base):
        return base.config.model, base.config.revision
    if base is not None:
        return os.fspath(base), None
    metadata = read_metadata(path) if path.is_dir() else None
    if metadata is None:
        return None, None
    found = _found(metadata.base, path)
    return found.model, found.revision


def _found(recorded: BaseInfo, path: Path) -> BaseInfo:
    """Return the recorded base: of a relative folder that is not here, the one of this name next above the adapter.

    The training may have been started elsewhere. That the weights are those of the training is checked afterwards.
    """
    name = recorded.model
    if name is None or recorded.fingerprint is None or (Path(name) / CONFIG).is_file():
        return recorded
    above = (parent / name for parent in path.resolve().parents)
    folder = next((folder for folder in above if (folder / CONFIG).is_file()), None)
    return recorded if folder is None else recorded.model_copy(update={"model": str(folder)})


def _open_checkpoint(
    path: Path, task: str | None, base: BaseLike | None, machine: Machine, *, trust: bool, same_base: bool
) -> Opened:
    """Read a checkpoint with the heads of the adapters that were merged into it."""
    opened = open_checkpoint(path)  # what is no checkpoint is refused with the reason
    adapter = Adapter({}, heads=read_heads(path), records=read_records(path))
    name, record = chosen_record(adapter.records, task, path)
    by_base = names_by_backbone(record.family)
    if not by_base and base is not None:
        raise ArgumentError("a checkpoint is its own base", got=str(base), where=_BASE, fix="leave it out")
    if by_base and base is None:
        # The adapters were trained for class names as the unchanged base embeds them; the merged one does it otherwise.
        what = f"the class names of {name} are embedded by the unchanged base, which this checkpoint does not contain"
        raise ArgumentError(what, where=path, fix=_FIX)
    record = _held_as_stored(record, opened)
    merged = recorded_base(record, BaseInfo(model=str(path)), machine, trust=trust, where=_BASE)
    origin = _base(base, BaseInfo(), record, machine, trust) if by_base else merged
    if by_base and not same_base:
        _refuse_another_origin(origin, path)
    return Opened(adapter, merged, recorded_task(name, record, origin))


def _held_as_stored(record: HeadRecord, checkpoint: Checkpoint) -> HeadRecord:
    """Return a record with the dtype of training only if the checkpoint has it: another would round what was added."""
    stored = {_DTYPES.get(one.dtype) for one in checkpoint.tensors.values()}
    kept = "float32" if stored != {record.base.get("weights_dtype")} else record.base["weights_dtype"]
    return record.model_copy(update={"base": {**record.base, "weights_dtype": kept, "quantization": None}})


def _base(base: BaseLike | None, recorded: BaseInfo, record: HeadRecord, machine: Machine, trust: bool) -> Base:
    """Return the base that is given, or else load the recorded one."""
    if isinstance(base, Base):
        _refuse_other_settings(base, record)
        return base
    named = recorded if base is None else BaseInfo(model=os.fspath(base))
    return recorded_base(record, named, machine, trust=trust, where=_BASE)


_TOWERS = ("vision", "vision_revision")
"""Keys that name further models: the fingerprint covers their weights."""


def _refuse_other_settings(base: Base, record: HeadRecord) -> None:
    """Refuse a base that was loaded for another family, or with settings that give other answers."""
    if base.config.family != record.family:
        fix = f"load it with family {record.family}"
        raise ArgumentError("the base is of another family", got=base.config.family, where=_BASE, fix=fix)
    recorded = base_settings({**record.base, "family": record.family, "model": base.config.model}, _BASE)
    # weights that differ by the form in which they are held have another fingerprint
    own = {"family", "model", "revision", "trust_remote_code", "device_map", *base.config.held, *_TOWERS}
    wanted, given = (config.model_dump(mode="json", exclude=own) for config in (recorded, base.config))
    if odd := {key: value for key, value in given.items() if value != wanted.get(key)}:
        name, value = next(iter(odd.items()))
        fix = f"load it with {name}={wanted.get(name)!r}, or give its folder or Hub id"
        raise ArgumentError(f"the base has another {name} than in training", got=value, where=_BASE, fix=fix)


def _refuse_another_origin(origin: Base, path: Path) -> None:
    """Refuse a base on disk that is not the one of the merge."""
    lineage = read_json(inside(path, LINEAGE)).get("base") if (path / LINEAGE).is_file() else None
    expected = lineage.get("fingerprint") if isinstance(lineage, dict) else None
    folder = Path(origin.config.model)
    if isinstance(expected, str) and folder.is_dir() and open_checkpoint(folder).fingerprint != expected:
        fix = f"{_FIX}; if the two are the same weights, pass same_base=True, or --same-base"
        raise ModelError("the adapters were merged into another base", got=str(folder), where=path, fix=fix)


def put_in(opened: Opened) -> tuple[TaskModel, contextlib.ExitStack]:
    """Put the adapter into its base for good, and return the task's model, with a context to keep open.

    No copy of the original weights is kept.
    """
    saved: dict[str, Tensor] = {}
    stack = contextlib.ExitStack()
    model_of = stack.enter_context(opened.answering(saved))
    saved.clear()
    model = model_of(opened.task)
    model.eval()
    return model, stack


def inputs_of(table: Table, task: Task, base: Base) -> Split:
    """Return rows as inputs of a task that has a record, with placeholders as targets.

    Raises:
        DataError: a row cannot be converted; the message names it.
    """
    family = FAMILIES.get(task.family)
    return encoded(table, settings_of(task.name, task.record["task"], family), base, family)


class _Open:
    """Keeps a context open as long as a network lives, or a copy of it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack

    def __deepcopy__(self, memo: dict[int, Any]) -> _Open:
        return self


class TaskNetwork(nn.Module):
    """An adapter in its base, with the readout of one task: inputs -> logits.

    The logits are those that are scored: with the updates in the weights, or in the expansion of the network with its
    readout inside, as the adapter's mode answers.

    Args:
        opened: the adapter, its base, which is used up, and the task.

    Attributes:
        task: the task's name.
        labels: names of the classes, in the order of the logits; empty if there are none.
        model: the `tangora.tasks.TaskModel`, with the parts ``backbone`` and ``readout``.
    """

    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self.task, self.labels = opened.task.name, list(opened.task.labels)
        self._of_task, self._base = opened.task, opened.base
        self.model, stack = put_in(opened)
        self._open = _Open(stack)
        self.eval()

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Return float32 logits of the classes; or of target tokens, whose ids ``labels`` are.

        Args:
            labels: token ids of target texts, -100 where there is none; not needed for classes.
            inputs: a batch, by the backbone's names for its entries; see `encode`.
        """
        if labels is None and self.model.form.logits_over == "tokens":
            fix = "pass labels=, token ids of target texts; tangora.predictor generates answers"
            raise ArgumentError("logits of this task are of target tokens", where=f"task {self.task}", fix=fix)
        return self.model.logits(inputs, labels)

    def encode(self, rows: Sequence[Any]) -> Batch:
        """Return rows as one batch for `forward`, on the network's device; see `tangora.predictor` for their form.

        Raises:
            ArgumentError: there are no rows.
            DataError: a row cannot be converted; the message names it.
        """
        split = inputs_of(table_of(rows), self._of_task, self._base)
        data = split.dataset()
        batch = self.model.collator([data[row] for row in range(len(split))])
        device = next(self.model.parameters()).device
        return {name: value.to(device) for name, value in batch.items() if name != "labels"}
