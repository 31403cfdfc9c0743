"""eP-ALM (arXiv:2303.11403): [CLS] tokens of a frozen vision tower in the layers of a frozen decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tangora.config.ep_alm import EpAlmSettings
from tangora.errors import ModelError
from tangora.modes.kinds._modules import AddedModules

if TYPE_CHECKING:
    from torch import nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.modular.ep_alm.network import EpAlm
    from tangora.tasks import Base, Task

__all__ = ["MODE"]


class _EpAlm(AddedModules):
    """A linear connector for each of the tower's last levels, and a soft prompt. Both towers stay frozen.

    Before every layer ``l`` of a range, column 0 of the hidden states is ``C_i v_i + c_i``: ``v_i`` is the [CLS] token
    of level i after the tower's last layer norm, ``i = ⌊(l - start) k / (end - start)⌋``. A soft prompt is between the
    visual token and the question. The visual token sees itself alone.

    Choose it to give a text model images at the cost of a few thousand numbers a task: k (d_v d_t + d_t) + n d_t.
    Connectors and prompts enter linearly, so adapters of several tasks may be fused.

    Departures from the paper: the mask does not leak (``mask: released`` does); the loss is of the answer (a task's
    ``loss: all`` is of the question too), a mean over tokens; one learning rate; greedy answers. The soft prompt's MLP
    is left out of the adapter: its outputs are kept.
    """

    name = "ep-alm"
    settings: Final = EpAlmSettings
    default_rate: Final = 1e-3
    passes: Final = 3
    joint: Final = False
    kind: Final = "modules"
    answers: Final = "ep-alm"
    fusable: Final = True
    tiny: Final = "vision-language"

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse towers of unknown kinds, a range that is not in the decoder, and gradient checkpointing."""
        from tangora.modular.ep_alm.plan import planned  # deferred: torch

        planned(base.backbone, config.settings)
        if config.training.gradient_checkpointing:
            where, fix = "training.gradient_checkpointing", "switch it off"
            raise ModelError("visual tokens are not there when a layer is computed again", where=where, fix=fix)

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count the parameters of connectors and prompt; those of the prompt's MLP are trained, and not kept."""
        from tangora.modes.modular import modules_footprint  # deferred: torch

        network = _made(base, config)
        kept = sum(value.numel() for value in network.kept().values())
        return modules_footprint(network, network.layout.end - network.layout.start, kept=kept)

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train connectors and prompt; see `Mode.train`."""
        from tangora.modes.modular import adding, modules_adapter  # deferred: torch
        from tangora.tasks.model import TaskModel  # deferred: torch

        network = _made(bench.base, config)
        with adding(bench, tasks, config, network) as session:
            session.fit(lambda task: TaskModel(bench.base.backbone, task, bench.base))
            tensors = network.kept()
        made = modules_adapter(bench.base, tasks, config, tensors, network.layout.settings())
        return {task.name: made for task in tasks}

    def network(self, backbone: nn.Module, adapter: Adapter) -> EpAlm:
        """Return connectors and prompt as they were kept; see `AddedModules.network`."""
        from tangora.modular.ep_alm.network import EpAlm, Layout  # deferred: torch

        return EpAlm(Layout(**(adapter.metadata.modules or {})))


def _made(base: Base, config: FinetuneConfig) -> EpAlm:
    """Return a new network; all tasks of a seed begin with the same values."""
    from tangora.adapters.initial import seed_of  # deferred: torch
    from tangora.modular.ep_alm.network import EpAlm
    from tangora.modular.ep_alm.plan import planned
    from tangora.modular.network import drawing

    settings = config.settings
    with drawing(seed_of("ep-alm", config.seed)):
        return EpAlm(planned(base.backbone, settings), mlp=settings.prompt_mlp)


MODE = _EpAlm()
