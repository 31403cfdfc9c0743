"""Do one job after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tangora.config.settings import Frozen
from tangora.runs.execution import perform

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tangora.runs.context import Context
    from tangora.runs.contract import Executor
    from tangora.runs.events import OnEvent
    from tangora.runs.jobs import Job

__all__ = ["EXECUTOR", "Serial", "SerialSettings"]


class SerialSettings(Frozen):
    """No settings."""


class Serial:
    """Does the jobs in the order given, with one base model in memory.

    Choose it if one job uses the whole machine, as on one GPU, and if you are not sure.
    """

    name = "serial"
    settings: type[BaseModel] = SerialSettings

    def run(self, jobs: Sequence[Job], context: Context, settings: BaseModel, on_event: OnEvent) -> None:
        """Do the jobs; see `tangora.runs.contract.Executor`."""
        for job in jobs:
            perform(job, context, on_event)


EXECUTOR: Executor = Serial()
