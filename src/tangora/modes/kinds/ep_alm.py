"""eP-ALM (arXiv:2303.11403): [CLS] tokens of a frozen vision tower in the layers of a frozen decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tangora.config.ep_alm import EpAlmSettings
from tangora.errors import AdapterError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.modular.ep_alm.network import EpAlm
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["MODE"]


class _EpAlm:
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
    linearize: Final = "none"
    answers: Final = "ep-alm"
    linear_in_coefficients: Final = False
    can_be_student: Final = False
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

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """See `Mode.answering`: with visual tokens in the decoder."""
        from tangora.modes.modular import by_modules  # deferred: torch

        return by_modules(base, adapter, _again(adapter))

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return both towers with the connectors between them; see `Mode.load_model`."""
        from tangora.modes.modular import in_network  # deferred: torch

        return in_network(folder, model, lambda _, adapter: _again(adapter))


def _made(base: Base, config: FinetuneConfig) -> EpAlm:
    """Return a new network; all tasks of a seed begin with the same values."""
    from tangora.adapters.initial import seed_of  # deferred: torch
    from tangora.modular.ep_alm.network import EpAlm
    from tangora.modular.ep_alm.plan import planned
    from tangora.modular.network import drawing

    settings = config.settings
    with drawing(seed_of("ep-alm", config.seed)):
        return EpAlm(planned(base.backbone, settings), mlp=settings.prompt_mlp)


def _again(adapter: Adapter) -> EpAlm:
    """Return the network of an adapter's settings, without its values.

    Raises:
        AdapterError: the settings are not those of such a network.
    """
    from tangora.modular.ep_alm.network import EpAlm, Layout  # deferred: torch

    settings: dict[str, Any] = dict(adapter.metadata.modules or {})
    try:
        return EpAlm(Layout(**settings))
    except (TypeError, RuntimeError) as cause:
        what = f"tangora.json does not say what the modules are made of ({cause})"
        raise AdapterError(what, got=settings, where="modules", fix="copy the adapter's folder again") from cause


MODE = _EpAlm()
