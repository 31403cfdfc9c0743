"""`polish`: from an exact fusion towards its experts, on rows without labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tangora.adapters.adapter import Adapter, load, load_beside
from tangora.adapters.contract import format_of, needs_base
from tangora.adapters.heads import read_heads, read_records
from tangora.adapters.metadata import Metadata, read_metadata
from tangora.adapters.saving import refuse_file_name
from tangora.config.polish import PolishSettings
from tangora.errors import ArgumentError, FusionError
from tangora.fusion.fusion import Fusion
from tangora.fusion.heads import file_name
from tangora.fusion.weights import tabulate
from tangora.modes.contract import OnStep
from tangora.modes.finetuning import in_work_folder, write_trained
from tangora.polishing.present import answered_tasks, experts_tasks, from_it_alone, without_tasks
from tangora.polishing.training import polished
from tangora.progress import Progress, shown
from tangora.storage.hub import located
from tangora.support.files import refuse_output
from tangora.support.validation import validate
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from tangora.fusion.weights import Weights
    from tangora.tasks import Base

__all__ = ["polish"]

_PRESENT = "the present adapter"

AdapterLike: TypeAlias = "Adapter | str | os.PathLike[str]"


def polish(
    adapters: Sequence[AdapterLike],
    base: Base,
    tasks: Sequence[Task],
    *,
    start: AdapterLike | None = None,
    present: AdapterLike | None = None,
    method: str = "task_arithmetic",
    weights: Weights | None = 0.5,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: Path | None = None,
    scratch: Path | None = None,
    cache: Path | None = None,
    same_base: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Adapter:
    r"""Train a fused adapter towards its experts' answers on rows without labels, at a fixed rank.

    .. math:: \min_{A, B} \; \frac{1}{n} \sum_t \mathbb{E}_{x \in X_t} \,
        \mathrm{KL}\big(f(x; \theta_0 + \Delta W_t) \parallel f(x; \theta_0 + B A)\big)

    Choose it if some rows of the tasks' inputs can be had: it keeps more of the experts than a fusion without data, by
    more the more rows there are. The experts' answers are computed first, one expert in memory at a time; then the
    factors are trained as in fine-tuning. No label is read, unless ``labels=a`` gives those of classes a share of the
    loss, ``(1 − a) · KL + a · cross-entropy``. Following experts on unlabelled rows is known from
    ProDistill (arXiv:2502.12706) and SAMerging (arXiv:2512.21288), which train coefficients of the experts; here the
    factors of the fused adapter are trained, so that the result is a plain adapter of the given rank.

    ``initial="layers"`` starts from factors in closed form, and ``objective="layers"`` trains block by block towards
    the outputs of the experts' blocks, both from the inputs in the merged model and in the experts
    (`tangora.polishing.closed_form`, `tangora.polishing.progressive`).

    Args:
        adapters: the experts, or their folders: one of each task, of any mode.
        base: their base; as before afterwards.
        tasks: rows of their inputs are used. If every expert names its task, the order is free; else it is that of
            the experts.
        start: the adapter to start from; by default the experts are fused.
        present: an adapter of several tasks, such as an earlier polish, to which the experts' tasks are added. It takes
            the place of an expert for every other task, and the default start is the present adapter plus the experts,
            weighted. An expert of a task that it has already takes its place for that task. If an expert does not name
            its task, the experts' tasks come first.
        method, weights, parameters: of that fusion, as in `tangora.fuse`.
        seed: of the choice of rows, of their order and of what is drawn.
        out: folder for the adapter and ``training.json`` (curves, wall time, parameter counts).
        scratch: folder for checkpoints and answers to resume from, removed at the end; None for none.
        cache: folder in which the experts' answers are kept by content; by default in ``scratch``.
        same_base: accept adapters whose recorded base differs.
        overwrite: replace ``out``.
        on_step: called after each step with (step, total steps, loss), in the main process.
        progress: shows passes and steps; by default in a terminal or a notebook. False is silent.
        settings: fields of `tangora.config.polish.PolishSettings`: ``rank``, ``rows``, ``steps``, ``student``, ...

    Raises:
        ArgumentError: adapters and tasks do not match, a setting is invalid, labels are asked for of other answers than
            classes, or ``out`` names a file.
        DataError: a task lacks the split or the labels that are asked for, or most of the chosen rows are its test
            rows.
        FusionError: the experts cannot be fused.
        ModelError: an expert was made for another base; LoRA cannot adapt the start's sites; a loss is not finite; or
            layer by layer, the base is no sequence of blocks in float32, or an expert changes no weights.
        OutputError: ``out`` exists and ``overwrite`` is false, or cannot be written.

    >>> import tangora
    >>> base = tangora.load_base("encoder", family="text-zero-shot")
    >>> files = {"train": "colors/train.parquet", "test": "colors/test.parquet"}
    >>> labels = ["red", "green", "blue"]
    >>> tasks = [tangora.load_task(name, base, files, labels=labels) for name in ("one", "two")]
    >>> adapter = tangora.polish(["adapters/one", "adapters/two"], base, tasks, rank=4, rows=8, steps=2)
    >>> adapter.metadata.polished.rows
    {'one': 8, 'two': 8}
    """
    chosen = validate(PolishSettings, settings, "polish", ArgumentError)
    if out is not None:
        refuse_output(out, overwrite, _places([*adapters, start, present]))
        refuse_file_name(out)
    own = tasks if present is None else _without_present(adapters, tasks, present)
    experts = _by_task(adapters, own)
    begun = None if start is None else _opened(start, base)
    if present is not None and begun is None and (method != "task_arithmetic" or parameters):
        fix = "leave method and parameters out, or give start"
        raise ArgumentError("experts are added to the present adapter", got=method, where="polish.method", fix=fix)
    if begun is not None:
        first = begun
    elif present is not None:
        first = _added(present, experts, base, weights, same_base)
    else:
        first = _fused(experts, base, method, weights, parameters, same_base)
    with shown(progress) as listener, in_work_folder(scratch, out):
        teachers = {task.name: experts.get(task.name, present) for task in tasks}
        made = polished(
            first,
            {name: partial(_opened, adapter, base) for name, adapter in teachers.items() if adapter is not None},
            base,
            tasks,
            chosen,
            seed=seed,
            scratch=scratch,
            cache=cache if cache is not None or scratch is None else scratch / "answers",
            same_base=same_base,
            on_step=on_step,
            progress=listener,
        )
        if out is not None:
            write_trained({out: (made.adapter, made.record)}, overwrite)
    return made.adapter


def _places(adapters: Sequence[AdapterLike | None]) -> list[str | os.PathLike[str]]:
    """Return the inputs that are not in memory, which the output must not replace."""
    return [adapter for adapter in adapters if adapter is not None and not isinstance(adapter, Adapter)]


def _opened(adapter: AdapterLike, base: Base) -> Adapter:
    where = base.config.model, base.config.revision
    return adapter if isinstance(adapter, Adapter) else load_beside(adapter, *where)


def _needs(adapter: str | os.PathLike[str]) -> bool:
    """Return whether an adapter is read with the weights of its base."""
    return needs_base(located(adapter, "adapter")) or _metadata(adapter).base.adapted is not None


def _metadata(adapter: AdapterLike) -> Metadata:
    """Return the metadata of an adapter, of which no tensor is read."""
    if isinstance(adapter, Adapter):
        return adapter.metadata
    place = located(adapter, "adapter")
    about = read_metadata(place)
    if about is None and needs_base(place):
        return format_of(place).survey(place, None).adapter.metadata
    return about or load(place, lazily=True).metadata


def _by_task(adapters: Sequence[AdapterLike], tasks: Sequence[Task]) -> dict[str, AdapterLike]:
    """Return task -> its expert."""
    if len(adapters) != len(tasks) or not tasks:
        what = f"{len(tasks)} tasks need {len(tasks)} experts" if tasks else "polish needs at least one task"
        raise ArgumentError(what, got=len(adapters), where="polish.adapters", fix="give one expert of each task")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ArgumentError("two tasks have one name", got=", ".join(names), where="polish.tasks", fix="rename one")
    recorded = [_metadata(adapter).task for adapter in adapters]
    if not any(recorded):
        return dict(zip(names, adapters, strict=True))
    if odd := [name for name in recorded if name is not None and name not in names]:
        fix = f"give experts of {', '.join(names)}, or tasks of these names"
        raise ArgumentError("an expert of another task", got=odd[0], where="polish.adapters", fix=fix)
    # An expert without a name stands at the place of its task; one with a name may stand anywhere, if all have one.
    placed = [own or name for own, name in zip(recorded, names, strict=True)]
    if sorted(placed) != sorted(names):
        fix = f"give them in the order of the tasks: {', '.join(names)}"
        got = ", ".join(str(name) for name in recorded)
        raise ArgumentError("it is not clear which expert is of which task", got=got, where="polish.adapters", fix=fix)
    return dict(zip(placed, adapters, strict=True))


def _without_present(adapters: Sequence[AdapterLike], tasks: Sequence[Task], present: AdapterLike) -> list[Task]:
    """Return the tasks that the adapters are experts of; the present adapter answers the others."""
    records = present.records if isinstance(present, Adapter) else read_records(located(present, "adapter"))
    answered = dict.fromkeys([*answered_tasks(_metadata(present), records), *records])
    return experts_tasks([_metadata(adapter).task for adapter in adapters], tasks, answered)


def _added(
    present: AdapterLike,
    experts: Mapping[str, AdapterLike],
    base: Base,
    weights: Weights | None,
    same_base: bool,
) -> Adapter:
    """Return the present adapter plus the weighted experts, whose heads take the place of its own of their tasks.

    Raises:
        ArgumentError: weights are of sites.
        FusionError: they do not go together; the message says so of experts of another kind, too.
    """
    if isinstance(weights, Mapping):
        fix = "give one number, or one per expert"
        raise ArgumentError("weights of sites beside a present adapter", where="polish.weights", fix=fix)
    each = tabulate(0.5 if weights is None else weights, len(experts), ())
    assert isinstance(each, list)
    if experts.keys() & _heads_of(present):
        present = without_tasks(_opened(present, base), experts.keys())
    everyone = {_PRESENT: present, **experts}
    try:
        made = _fused(everyone, base, "task_arithmetic", [1.0, *each], None, same_base)
    except FusionError as error:
        if len({(m.kind, m.linearize) for m in map(_metadata, everyone.values())}) > 1:
            raise from_it_alone(error) from error
        raise
    # What it saved whole is the head of a task that it answers, and is taken from there.
    return replace(made, heads={name: head for name, head in made.heads.items() if name != file_name(_PRESENT)})


def _heads_of(adapter: AdapterLike) -> set[str]:
    """Return the tasks that an adapter has heads or records of."""
    if isinstance(adapter, Adapter):
        return {*adapter.heads, *adapter.records}
    place = located(adapter, "adapter")
    return {*read_heads(place), *read_records(place)}


def _fused(
    experts: Mapping[str, AdapterLike],
    base: Base,
    method: str,
    weights: Weights | None,
    parameters: Mapping[str, Any] | None,
    same_base: bool,
) -> Adapter:
    """Fuse the experts; heads that differ are kept, one for each task."""
    read = [one if isinstance(one, Adapter) or not _needs(one) else _opened(one, base) for one in experts.values()]
    fusion = Fusion(read, names=list(experts), same_base=same_base, heads="keep")
    return fusion.merge(method, weights, parameters)
