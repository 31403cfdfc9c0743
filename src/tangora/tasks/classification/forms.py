"""The form of answers, by the problem. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tangora.tasks.contract import AnswerForm

if TYPE_CHECKING:
    from tangora.tasks.classification.settings import RowSettings

__all__ = ["row_form"]


def row_form(config: RowSettings) -> AnswerForm:
    """Return the form of the answers to a task with one target per row."""
    if config.problem == "multi":
        return AnswerForm("labels", "labels")
    return AnswerForm("number", None) if config.problem == "regression" else AnswerForm("classes", "classes")
