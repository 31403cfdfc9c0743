"""`analyze`: measures that explain how well the experts of a run can be fused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tangora.api.shown import Shown, shown
from tangora.runs.stages.analysis import analyze as analyze_plan
from tangora.runs.stages.analysis_plan import KINDS, AnalysisPlan, AnalysisSettings

__all__ = ["analyze"]


def analyze(
    run: str | os.PathLike[str],
    *,
    only: Sequence[str] = KINDS,
    modes: Sequence[str] = (),
    pairs: str | None = None,
    points: int = 6,
    margin: float = 0.4,
    rows: int = 128,
    split: str = "validation",
    trust_remote_code: bool = False,
    progress: Shown = None,
) -> Path:
    """Analyze the experts of a finished run, as ``tangora analyze`` does, and return the path of its report.

    Results are kept in ``RUN/analysis``; existing ones are not computed again.

    Args:
        run: the run's folder.
        only: some of ``signs``, ``angles``, ``planes`` and ``linearity``.
        modes: some of the recipe's modes; empty for all.
        pairs: pairs of tasks for planes, as ``a+b,c+d``, or ``all``; None for the first three pairs.
        points: number of points of a plane's grid on [0, 1], in each direction.
        margin: extension of the grid beyond 0 and 1.
        rows: the largest number of rows per task.
        split: ``train``, ``validation`` or ``test``.
        trust_remote_code: run code from the base model's repository if the run's recipe says so.
        progress: whether to show bars; by default in a terminal or a notebook.

    Raises:
        TangoraError: the folder is not a finished run, or a name or a number is invalid.

    >>> import tangora
    >>> tangora.analyze("run", only=["signs"]).name
    'report.html'
    """
    settings = AnalysisSettings(
        only=only, modes=modes, pairs=pairs, points=points, margin=margin, rows=rows, split=split
    )
    with shown(progress) as bars:
        return analyze_plan(AnalysisPlan(Path(run), settings, trust_remote_code), bars)
