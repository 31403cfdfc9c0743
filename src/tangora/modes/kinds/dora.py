"""DoRA (arXiv:2402.09353): LoRA, with a trained norm for every row of the adapted weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tangora.modes.kinds.lora import Lora

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench
    from tangora.tasks import Base, Task

__all__ = ["MODE"]


class _Dora(Lora):
    """Each adapted weight is ``m · (W + s·BA) / ‖W + s·BA‖``, row by row, with trained A, B and m.

    The update depends on the base's weights and has full rank: fusions of DoRA adapters are no longer DoRA's, and have
    the rank that they are cut to. An adapter is read with its base, which is looked for where it was in training.
    """

    name = "dora"
    can_be_student = False
    plain_layers = False
    routable: Final = False  # its updates are of full rank

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse what LoRA refuses, rounded weights, a base without files, and a start that is not the base."""
        from tangora.modes.low_rank import check_dora  # deferred: torch

        check_dora(base, config)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train the factors and norms of every site; see `Mode.train`."""
        from tangora.modes.low_rank import train_dora  # deferred: torch

        return train_dora(bench, tasks, config)


MODE = _Dora()
