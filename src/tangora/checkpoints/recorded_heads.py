"""Heads and records of tasks that checkpoints bring along: those of adapters that were merged into them before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from tangora.adapters.heads import HeadRecord

__all__ = ["brought_along"]

_FOLDER = "heads"


def brought_along(
    folders: Sequence[Path],
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, HeadRecord], list[str]]:
    """Return heads and records by task, and notes on those that are left out.

    Left out are tasks on which the checkpoints differ, and tasks with class names that a base embeds: which base that
    was is not known any more.

    Args:
        folders: of a base and of models fine-tuned from it.

    Raises:
        FileError: a file is corrupt, or lies outside its folder.
    """
    having = [folder for folder in folders if (folder / _FOLDER).is_dir()]
    if not having:
        return {}, {}, []
    from tangora.adapters.heads import heads_digest, read_heads, read_records  # deferred: imports torch
    from tangora.tasks.contract import names_by_backbone

    heads: dict[str, Mapping[str, Tensor]] = {}
    records: dict[str, HeadRecord] = {}
    left: dict[str, str] = {}
    for folder in having:
        own, recorded = read_heads(folder), read_records(folder)
        for task in sorted(own.keys() | recorded.keys()):
            head, record = own.get(task, {}), recorded.get(task)
            if record is not None and names_by_backbone(record.family):
                left[task] = "its class names were embedded by another base"
            elif task in records.keys() | heads.keys() and (
                records.get(task) != record or heads_digest({task: heads.get(task, {})}) != heads_digest({task: head})
            ):
                left[task] = "the checkpoints differ in it"
            if head:
                heads[task] = head
            if record is not None:
                records[task] = record
    notes = [f"heads/{task} is left out: {why}" for task, why in left.items()]
    kept_heads = {task: head for task, head in heads.items() if task not in left}
    return kept_heads, {task: record for task, record in records.items() if task not in left}, notes
