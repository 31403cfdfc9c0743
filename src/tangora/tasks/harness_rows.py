"""The rows of tasks of EleutherAI's lm-evaluation-harness, for the family `causal-lm`.

The harness makes prompts (with their examples), choices and answers of its documents; here these become the columns
``prompt``, ``choices``, ``label`` or ``completion`` of a `Table`. Models then answer as for any rows, so that experts
are trained on them, searches choose coefficients by them, and every table of a run contains them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.config.language import PROMPT, TARGET
from tangora.errors import DataError, MissingExtraError
from tangora.support.validation import did_you_mean
from tangora.tasks.sources import Table

if TYPE_CHECKING:
    from tangora.config.language import LanguageTask
    from tangora.config.tasks import Source

__all__ = ["HarnessTable", "manager_of", "read_harness", "refuse_other_settings", "require_harness"]

_ELSEWHERE = "score by it with: tangora evaluate --lm-eval {name}"


@dataclass(frozen=True)
class HarnessTable(Table):
    """Rows of a task of the harness, with the settings that its scores depend on.

    Attributes:
        separator: what stands between a prompt and its answer.
        stop: the texts that end an answer; None for choices.
        most: the largest number of generated tokens; None for choices.
        several: whether a row has several correct answers.
    """

    separator: str = " "
    stop: tuple[str, ...] | None = None
    most: int | None = None
    several: bool = False


def require_harness() -> None:
    """Raise `MissingExtraError` unless the harness is installed."""
    if find_spec("lm_eval") is None:
        fix = "run: pip install lm-eval"
        raise MissingExtraError("tasks of the harness need a package that is not installed", got="lm_eval", fix=fix)


def manager_of(include: Path | None) -> Any:
    """Return the harness's index of its tasks, and of those in a folder of YAML files.

    Raises:
        MissingExtraError: the harness is not installed.
    """
    require_harness()
    files = () if include is None else tuple((str(p), p.stat().st_mtime_ns) for p in sorted(include.rglob("*.y*ml")))
    return _manager(include, files)


@lru_cache(maxsize=2)
def _manager(include: Path | None, files: tuple[tuple[str, int], ...]) -> Any:
    """Return the index, which takes seconds to make, of ``files`` as they are now."""
    from lm_eval.tasks import TaskManager  # deferred: takes seconds

    return TaskManager(include_path=None if include is None else str(include))


def read_harness(source: Source, task: str) -> dict[str, Table]:
    """Return the rows of a task of the harness.

    Train, validation and test are those of the harness. A task without test rows is tested on its validation rows, as
    the harness does. The examples in a prompt may be other train rows, never the row itself.

    Args:
        source: names the task, and may name a folder of YAML files and the number of examples in a prompt.
        task: name of ours, for errors.

    Raises:
        MissingExtraError: the harness is not installed.
        DataError: no such task; or it is a group, cannot be trained on, has another form than choices or greedy
            answers, or changes answers before it scores them.
    """
    name, where = str(source.lm_eval), f"task {task}, {source.lm_eval} of the harness"
    manager = manager_of(None if source.include is None else Path(source.include))
    if name not in manager.all_tasks:
        fix = did_you_mean(name, list(manager.all_tasks))
        raise DataError("the harness has no such task", got=name, where=f"task {task}", fix=fix)
    found = _loaded(manager, name, where)
    _refuse_other_forms(found, name, where)
    if source.shots is not None:
        found.set_config("num_fewshot", source.shots)
    rows: dict[str, Callable[[], Iterable[Mapping[str, Any]]]] = {"train": found.training_docs}
    if found.has_test_docs():
        rows |= {"validation": found.validation_docs} if found.has_validation_docs() else {}
        rows["test"] = found.test_docs
    else:
        rows["test"] = found.validation_docs
    tables: dict[str, Table] = {}
    for split, documents in rows.items():
        found.set_fewshot_seed(1234)  # that of the harness's own evaluation
        tables[split] = _table(found, list(documents()), f"{where}, {split}", itself=split == "test")
    return tables


def _loaded(manager: Any, name: str, where: str) -> Any:
    try:
        loaded = manager.load([name])
    except Exception as cause:  # offline, a faulty file, missing packages of a task: they raise different exceptions
        detail = " ".join(str(cause).split())
        fix = "check the task's file, and that its data can be loaded"
        raise DataError(f"the harness cannot load the task ({detail})", where=where, fix=fix) from cause
    tasks = loaded["tasks"]
    if len(tasks) != 1:
        fix = f"name one of its tasks, such as {next(iter(tasks), name)}"
        raise DataError("this is a group of several tasks", got=f"{len(tasks)} tasks", where=where, fix=fix)
    return next(iter(tasks.values()))


def _refuse_other_forms(found: Any, name: str, where: str) -> None:
    elsewhere = _ELSEWHERE.format(name=name)
    kind = found.OUTPUT_TYPE
    if kind not in ("multiple_choice", "generate_until") or getattr(found, "multiple_input", False):
        raise DataError("only choices and generated answers can be read", got=kind, where=where, fix=elsewhere)
    if not found.has_training_docs():
        raise DataError("the harness's task has no rows to train on", got=name, where=where, fix=elsewhere)
    if not (found.has_test_docs() or found.has_validation_docs()):
        raise DataError("the harness's task has no rows to test on", got=name, where=where, fix=elsewhere)
    filters = [step.get("function") for one in found.config.filter_list or () for step in one.get("filter", ())]
    if found.config.process_results is not None:
        raise DataError("the task scores by code of its own", got=name, where=where, fix=elsewhere)
    plain = {"metric", "aggregation", "higher_is_better"}
    for metric in found.config.metric_list or ():
        if metric.get("metric") == "exact_match" and (odd := [k for k in metric if k not in plain and metric[k]]):
            raise DataError("the harness compares answers in another way", got=odd[0], where=where, fix=elsewhere)
    if changing := [step for step in filters if step != "take_first"]:
        what = "the harness changes answers to this task before it scores them"
        raise DataError(what, got=", ".join(map(str, changing)), where=where, fix=elsewhere)


def _table(found: Any, documents: list[Mapping[str, Any]], where: str, *, itself: bool) -> HarnessTable:
    """Return rows; ``itself`` leaves it to the harness whether a row may be an example of itself, as for test rows."""
    from lm_eval.models.utils import normalize_gen_kwargs  # deferred: optional

    columns: dict[str, list[Any]] = {"prompt": []}
    choosing = found.OUTPUT_TYPE == "multiple_choice"
    columns |= {"choices": [], "label": []} if choosing else {"completion": [], "references": []}
    settings = {} if choosing else normalize_gen_kwargs(dict(found.config.generation_kwargs or {}), 256)
    if settings.get("do_sample"):
        fix = "use a task with do_sample: false"
        raise DataError("a task of the harness samples, and answers here are greedy", where=where, fix=fix)
    shots = found.config.num_fewshot or 0
    sample = found.sampler.sample if shots else None
    for row, document in enumerate(documents):
        if sample is not None and not itself:  # the harness excludes a row only where it scores it
            found.sampler.sample = partial(_without, sample, document)
        context = found.fewshot_context(document, num_fewshot=shots, gen_prefix=found.doc_to_prefix(document))
        columns["prompt"].append(context)
        target = found.doc_to_target(document)
        if choosing:
            choices = [str(choice) for choice in found.doc_to_choice(document)]
            columns["choices"].append(choices)
            columns["label"].append(_label(target, choices, f"{where}, row {row}"))
        else:
            if isinstance(target, int) and found.config.doc_to_choice is not None:
                target = found.doc_to_choice(document)[target]
            answers = [str(one) for one in target] if isinstance(target, list) else [str(target)]
            columns["completion"].append(answers[0])
            columns["references"].append(answers)
    if sample is not None:
        found.sampler.sample = sample
    until = settings.get("until", [])
    return HarnessTable(
        columns,
        where,
        {},
        separator=found.config.target_delimiter,
        stop=None if choosing else tuple([until] if isinstance(until, str) else until),
        most=settings.get("max_gen_toks"),
        several=any(len(answers) > 1 for answers in columns.get("references", ())),
    )


def _without(sample: Callable[..., Any], document: Mapping[str, Any], **given: Any) -> Any:
    """Draw examples, without the row that they are for."""
    return sample(**{**given, "eval_doc": document})


def _label(target: Any, choices: list[str], where: str) -> int:
    if isinstance(target, str) and target in choices:
        return choices.index(target)
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < len(choices):
        fix = "use a task with one correct choice per row"
        raise DataError("a row's answer names no single choice", got=target, where=where, fix=fix)
    return target


def refuse_other_settings(tables: Mapping[str, Table], config: LanguageTask) -> None:
    """Raise `DataError` if settings of the recipe's task would change the scores of rows from the harness."""
    for table in tables.values():
        if not isinstance(table, HarnessTable):
            continue
        choosing = table.stop is None
        wanted: dict[str, Any] = {"separator": table.separator, "form": "choices" if choosing else "prompt"}
        wanted |= {"prompt": PROMPT, "target": TARGET, "chat": False} | ({"choices": "choices"} if choosing else {})
        actual: dict[str, Any] = {key: getattr(config, key) for key in wanted}
        if not choosing:
            wanted |= {"stop": sorted(table.stop or ()), "max_new_tokens": table.most}
            actual |= {"stop": sorted(config.stop), "max_new_tokens": config.max_new_tokens}
            if table.several:
                wanted, actual = wanted | {"references": "references"}, actual | {"references": config.references}
        for key, value in wanted.items():
            if actual[key] != value:
                fix = ("set choices: choices" if choosing else "leave choices out") if key == "form" else None
                fix = fix or f"set {key}: {value!r}"
                raise DataError("the harness's task has another setting", got=f"{key}: {actual[key]!r}",
                                where=f"task {config.name}", fix=fix)  # fmt: skip
