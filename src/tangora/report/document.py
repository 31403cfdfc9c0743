"""The results of a run as plain values, for ``tangora run --json``."""

from __future__ import annotations

from typing import Any

from tangora.report.doubts import notes
from tangora.report.headline import headline
from tangora.report.means import Mean
from tangora.report.summary import Key, Summary, mean_score
from tangora.support.json_text import parse_json

__all__ = ["document"]


def document(summary: Summary) -> dict[str, Any]:
    """Return the test scores of the largest subset: zero-shot, experts, and every fusion with its coefficients."""
    tasks = summary.largest.split("+") if summary.largest else summary.run.tasks
    zero = summary.zero_shot(tasks)
    experts = {mode: summary.experts(mode, tasks) for mode in summary.run.modes}
    return {
        "headline": headline(summary).sentences,
        "tasks": tasks,
        "zero_shot": {"mean": mean_score(zero), "tasks": {name: row.score for name, row in zero.items()}},
        "experts": {
            mode: {
                "mean": mean_score(rows),
                **({"sd": summary.expert_deviation(mode, tasks)} if summary.run.seeds else {}),
                "tasks": {name: row.score for name, row in rows.items()},
            }
            for mode, rows in experts.items()
        },
        "warnings": list(summary.run.warnings),
        "notes": notes(summary),
        **({"seeds": list(summary.run.seeds)} if summary.run.seeds else {}),
        "fusions": [_fusion(summary, key, mean) for key, mean in summary.at_largest().items()],
    }


def _fusion(summary: Summary, key: Key, mean: Mean) -> dict[str, Any]:
    rows = summary.fused_scores(key, summary.largest or "")
    texts = {row.coefficients for row in rows.values()}
    over = {"sd": mean.sd, "kept_sd": mean.kept_sd, "by_seed": list(mean.seeds)} if summary.run.seeds else {}
    return {
        "mode": key.mode,
        "method": key.method,
        "space": key.space,
        "selection": key.selection,
        "coefficients": _parsed(texts.pop()) if len(texts) == 1 else None,
        "subsets": mean.subsets,
        "mean": mean.score,
        "interval": [mean.low, mean.high],
        "kept": mean.kept,
        "kept_interval": [mean.kept_low, mean.kept_high],
        **over,
        "tasks": {name: {"score": row.score, "kept": row.normalized} for name, row in rows.items()},
    }


def _parsed(text: str) -> Any:
    try:
        return parse_json(text or "{}")
    except ValueError:
        return text
