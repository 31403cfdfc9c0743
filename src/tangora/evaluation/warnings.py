"""What makes a score doubtful: rows that were cut, answers that never end, and weights in another form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tangora.support.shown import percent
from tangora.tasks.cuts import cut_lines, cuts

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.evaluation.evaluator import Result
    from tangora.tasks import Base, Task

__all__ = ["base_warnings", "score_warnings"]


def base_warnings(adapters: Mapping[str, Adapter], base: Base) -> list[str]:
    """Return a sentence for each adapter that was trained on the base in another form, quantized say.

    Args:
        adapters: name -> adapter.
        base: that they are scored on.
    """
    made_for = {name: adapter.metadata.base for name, adapter in adapters.items()}
    return [
        f"{name} was trained on weights in {info.weights}, and is scored on others, in {base.config.weights}"
        for name, info in made_for.items()
        if info.weights not in (None, base.config.weights) and info.fingerprint != base.fingerprint
    ]


def score_warnings(
    scores: Mapping[str, Mapping[str, Result]], tasks: Sequence[Task], split: str, cut: Sequence[str] = ()
) -> list[str]:
    """Return a sentence for each doubtful score.

    An answer that does not end is scored as far as it was generated. Those are only worth a sentence if they are more
    than half of a score's answers: then the model has not learned to end, or the largest number of tokens is too small.

    Args:
        scores: candidate -> task -> result on ``split``.
        tasks: those that were scored.
        split: of their rows.
        cut: splits of which cut rows are said too; by default only ``split``.
    """
    lines = list(cut_lines({task.name: cuts(task) for task in tasks}, cut or [split]))
    by_name = {task.name: task for task in tasks}
    for candidate, results in scores.items():
        lines += (line for name in results for line in _unended(candidate, by_name[name], split, results[name]))
    return lines


def _unended(candidate: str, task: Task, split: str, result: Result) -> Iterator[str]:
    count, of = result.unended, len(result.values)
    if 2 * count > of:
        settings = (task.record.get(key, {}) for key in ("task", "base"))
        most = next((one["max_new_tokens"] for one in settings if one.get("max_new_tokens")), "max_new_tokens")
        answers = f"{count:,} of {of:,} {split} answers ({percent(count, of)})"
        fix = "raise max_new_tokens, name a text that ends them (stop), or train until they end"
        yield f"{candidate}, {task.name}: {answers} have no end within {most} tokens: {fix}"
