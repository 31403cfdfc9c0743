"""Trackers of a training: TensorBoard and Weights & Biases, with one of their runs for each adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback

from tangora.support.extras import require

__all__ = ["trackers"]


@contextlib.contextmanager
def trackers(names: Sequence[str], logs: Path) -> Iterator[list[TrainerCallback]]:
    """Yield callbacks for the named trackers; close them at the end of the block, after the last validation.

    Args:
        names: of ``tensorboard`` and ``wandb``.
        logs: folder for TensorBoard.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    require(*names, purpose="training.report_to")
    callbacks = [_TensorBoard(logs) if name == "tensorboard" else _Wandb() for name in names]
    try:
        yield list(callbacks)
    finally:
        for tracker in callbacks:
            tracker.close()


class _TensorBoard(TensorBoardCallback):
    """Writes to one folder, from the main process, until it is closed."""

    def __init__(self, logs: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.logging_dir = str(logs)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stay open."""

    def close(self) -> None:
        if self.tb_writer is not None:
            self.tb_writer.close()


class _Wandb(WandbCallback):
    """Ends the run that it started; a run that existed before belongs to the caller."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._theirs = self._wandb.run is not None

    def close(self) -> None:
        if self._wandb.run is not None and not self._theirs:
            self._wandb.finish()
