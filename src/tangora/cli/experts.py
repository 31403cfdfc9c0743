"""Base and tasks of experts, for commands that need rows of their inputs: from a recipe, or as the adapters record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from tangora.adapters.heads import HeadRecord, read_records
from tangora.adapters.metadata import BaseInfo, read_metadata
from tangora.config.recipe import load_recipe
from tangora.errors import ArgumentError, FileError
from tangora.polishing.present import answered_tasks
from tangora.runs.runner import prepare
from tangora.support.files import reachable
from tangora.support.machine import Machine
from tangora.support.names import hub_name
from tangora.tasks.recorded import read_inputs, recorded_base, recorded_task

if TYPE_CHECKING:
    from tangora.progress import Progress
    from tangora.tasks import Base, Task

__all__ = ["from_files", "from_recipe"]


def from_recipe(
    adapters: Sequence[Path],
    recipe: str,
    settings: Sequence[str],
    progress: Progress,
    *,
    present: Path | None = None,
    trust: bool,
) -> tuple[Base, list[Task]]:
    """Load a recipe's base, and the tasks that the adapters or their folders are named by, in the adapters' order.

    Args:
        adapters: their folders.
        recipe: name or path.
        settings: changes of the recipe.
        progress: is given what is loaded.
        present: the folder of an adapter whose tasks follow.
        trust: run code from the base's repository.

    Raises:
        ArgumentError: the recipe has no such task, or two adapters are of one.
    """
    chosen = load_recipe(recipe, settings, trust_remote_code=trust)
    tasks = {task.name: task for task in chosen.tasks}
    named = list(_by_task(adapters))
    named += [name for name in _tasks_in(present) if name not in named]
    if odd := [name for name in named if name not in tasks]:
        fix = f"name the adapters' folders as the recipe's tasks: {', '.join(sorted(tasks))}"
        raise ArgumentError("the recipe has no such task", got=odd[0], where="--recipe", fix=fix)
    return prepare(chosen.model_copy(update={"tasks": [tasks[name] for name in named]}), progress)


def from_files(
    adapters: Sequence[Path],
    files: Mapping[str, Path],
    base: str | None,
    *,
    present: Path | None = None,
    labelled: bool = False,
    trust: bool,
) -> tuple[Base, list[Task]]:
    """Load the base that the first adapter names, and the files' rows as the adapters record, in the adapters' order.

    Args:
        adapters: their folders.
        files: task -> file of rows.
        base: name or folder of the base, in place of the one that the adapter names.
        present: the folder of an adapter that stands for every task which no adapter is of.
        labelled: read the labels of the rows.
        trust: run code from the base's repository.

    Raises:
        ArgumentError: files and adapters are of different tasks, two adapters are of one, an adapter does not record
            how rows are read, two record different settings of the base, or nothing names the base.
    """
    folders = _by_task(adapters)
    if present is not None:
        folders |= {name: present for name in _tasks_in(present) if name not in folders}
    if odd := sorted(files.keys() ^ folders.keys()):
        where = "--data" if odd[0] not in files else f"--data {odd[0]}"
        what = "no rows for this task" if odd[0] not in files else "no expert of this task"
        fix = f"name the tasks {', '.join(sorted(folders))}, once each"
        raise ArgumentError(what, got=odd[0], where=where, fix=fix)
    records = {task: _record(task, folder) for task, folder in folders.items()}
    machine = Machine.resolve("auto", "float32", "auto")
    machine.use_threads()
    named = BaseInfo(model=base) if base is not None else _base_of(adapters[0])
    loaded = recorded_base(_common(records), named, machine, trust=trust, where="--base")
    tables = {name: read_inputs(files[name], name) for name in folders}
    return loaded, [recorded_task(n, records[n], loaded, table, labelled=labelled) for n, table in tables.items()]


def _tasks_in(present: Path | None) -> list[str]:
    """Return the tasks that an adapter of several tasks answers: those that it was polished towards, or records.

    Raises:
        ArgumentError: it says neither.
    """
    if present is None:
        return []
    _refuse_no_folder(present)
    metadata = read_metadata(reachable(present))
    parents = metadata.fused.parents if metadata is not None and metadata.fused is not None else []
    if tasks := answered_tasks(metadata, read_records(present)) or [parent.task or parent.name for parent in parents]:
        return tasks
    fix = "give an adapter that Tangora trained, polished or fused"
    raise ArgumentError("the adapter does not say which tasks it answers", where=present, fix=fix)


def _by_task(adapters: Sequence[Path]) -> dict[str, Path]:
    """Return task -> the folder of its expert.

    Raises:
        ArgumentError: two are of one task.
    """
    folders: dict[str, Path] = {}
    for folder in adapters:
        if (task := _task_of(folder)) in folders:
            fix = f"give one of {folders[task]} and {folder}; or rename one, if it is of another task"
            fix = "leave one out: it is given twice" if folder.samefile(folders[task]) else fix
            raise ArgumentError("two experts of one task", got=task, where=folder, fix=fix)
        folders[task] = folder
    return folders


def _refuse_no_folder(place: Path) -> None:
    if place.is_file():
        fix = "give a folder: single files do not say how rows are read"
        raise FileError("no such folder: this is a file", where=place, fix=fix)
    if not place.is_dir():
        raise FileError("no such folder", where=place, fix="give the folder of an adapter")


def _task_of(folder: Path) -> str:
    """Return the task that an adapter records, or else the folder's name."""
    _refuse_no_folder(folder)
    metadata = read_metadata(reachable(folder))
    named = hub_name(folder.absolute()) or folder.resolve()  # the cache's folder is named after the commit
    return (metadata.task if metadata is not None else None) or PurePath(named).name


def _record(task: str, folder: Path) -> HeadRecord:
    found = read_records(folder)
    if task not in found:
        fix = "give --recipe, whose task is described there; adapters of peft alone have no record"
        raise ArgumentError("the adapter does not say how its rows are read", got=task, where=folder, fix=fix)
    return found[task]


def _base_of(folder: Path) -> BaseInfo:
    metadata = read_metadata(reachable(folder))
    return metadata.base if metadata is not None else BaseInfo()


def _common(records: Mapping[str, HeadRecord]) -> HeadRecord:
    """Return the first record, if all agree on the family and the settings of the base."""
    (first, record), *others = records.items()
    for name, other in others:
        if (other.family, other.base) != (record.family, record.base):
            what = f"{first} and {name} were trained with other settings of the base"
            fix = "polish experts that read their inputs in the same way"
            raise ArgumentError(what, got=f"{record.base} and {other.base}", where="heads", fix=fix)
    return record
