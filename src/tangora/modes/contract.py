"""What a mode is: a way to train adapters, and to answer with them.

A mode is one object, found by its name: ours by file (`tangora.modes.kinds`), another package's by an entry point of
the group ``tangora.modes``. Everything that depends on how an adapter was trained asks its mode (`mode_of`).
`tangora.testing.check_mode` checks the promises below on a tiny model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

from tangora.support.seams import MODES

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.adapters.heads import HeadRecord
    from tangora.adapters.metadata import Metadata
    from tangora.config.settings import FinetuneConfig, ModeConfig
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["Bench", "Footprint", "Mode", "OnStep", "mode_of"]

OnStep: TypeAlias = Callable[[int, int, float], None]
"""Called after each step with (step, total steps, loss)."""


@dataclass(frozen=True)
class Bench:
    """What a training works on and with.

    Attributes:
        base: the model; a mode adapts it in place and puts it back as it was.
        scratch: folder for checkpoints to resume from; None: nothing to resume from.
        logs: folder for TensorBoard.
        on_step: called after each step, in the main process.
        model_of: makes the model that is trained on a task, in place of the mode's own: a student (`tangora.distill`).
        records: task -> loss and validation curves, wall time and parameter counts, filled by `tangora.modes.session`
            and written to ``training.json``.
        heads: task -> the parameters of its readout, if it has any, filled by `tangora.modes.session` too; the adapters
            get them.
        head_records: task -> what prediction needs; the adapters get them.
    """

    base: Base
    scratch: Path | None = None
    logs: Path | None = None
    on_step: OnStep | None = None
    model_of: Callable[[Task], TaskModel] | None = None
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    heads: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    head_records: dict[str, HeadRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class Footprint:
    """What one adapter of a mode costs.

    Attributes:
        sites: adapted layers, or parameters.
        trainable: numbers that are trained.
        size: bytes on disk.
    """

    sites: int
    trainable: int
    size: int


@runtime_checkable
class Mode(Protocol):
    """A way to train adapters, and to answer with them.

    Attributes:
        name: as it is registered: what a recipe says in ``modes.NAME.train`` and ``tangora.json`` in ``train``.
        settings: a frozen pydantic class (`tangora.config.settings.Frozen`) whose fields are the keys that the mode
            takes. Fields named ``lora`` and ``training`` start from the sections of the recipe; `AdapterSettings` and
            `WeightSettings` have these two, or the latter alone.
        default_rate: the learning rate if a recipe gives none.
        passes: what a training step costs a row, in forward passes; a backward pass counts as two.
        joint: whether it trains several tasks in one job. Of a mode that does not, every job has one task.
        kind: what its adapters are: ``lora`` (low-rank updates of layers, which stock peft loads) or ``full`` (changes
            of whole parameters).
        linearize: what ``tangora.json`` says is replaced by its first-order expansion at φ₀: ``none``, each adapted
            ``module``, or the whole ``model``.
        answers: how its adapters answer: ``weights`` (the updates are added into the base's weights), ``tangent`` (the
            network is expanded in their direction), or a name of the mode's own. Adapters of equal updates, whose
            modes say the same, have equal scores.
        linear_in_coefficients: whether logits are linear in fusion coefficients. Then columns can be made of them
            (`tangora.tangent.Columns`): every fusion is scored without a forward pass, and the best one is a convex
            problem.
        can_be_student: whether it can train ``bench.model_of``: an ordinary forward pass with LoRA layers, whose
            updates `tangora.distill` scales.

    A mode promises:

    1. `train` gives the same adapters for the same seed, leaves the base bit for bit as it was, also if it raises, and
       raises `ModelError` instead of returning weights that are not finite.
    2. `answering` gives the logits that the trained model gave, and leaves the base as it was.
    3. An adapter that was saved and loaded answers the same, by `answering` and by `load_model`.
    4. With ``linear_in_coefficients``, the logits of ``c · adapter`` are ``origin + c · column``.
    5. `check` refuses, before anything is trained, settings with which `train` would fail.
    """

    name: str
    settings: type[BaseModel]
    default_rate: float
    passes: int
    joint: bool
    kind: Literal["lora", "full"]
    linearize: Literal["none", "module", "model"]
    answers: str
    linear_in_coefficients: bool
    can_be_student: bool

    def check(self, base: Base, config: FinetuneConfig) -> None:
        """Refuse what cannot be trained: a target that matches nothing, a start that changes the base's weights, ...

        Called for every mode of a recipe before the first one trains.

        Raises:
            ModelError: names the setting.
        """
        ...

    def footprint(self, base: Base, config: FinetuneConfig) -> Footprint:
        """Count what one adapter costs; the base is as before afterwards."""
        ...

    def train(self, bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
        """Train, and return an adapter for each task by the task's name; a joint mode may return one and the same.

        Nothing is written but checkpoints below ``bench.scratch``. `tangora.modes.session.training` brings the
        trainer: order of rows, resuming, validation, logging; `tangora.modes.outcome.adapter_of` the metadata.

        Raises:
            ModelError: the settings do not fit the base, or a loss or weight is not finite.
        """
        ...

    def answering(
        self, base: Base, adapter: Adapter, saved: dict[str, Tensor]
    ) -> AbstractContextManager[Callable[[Task], TaskModel]]:
        """Return a context in which the base answers with an adapter: task -> model.

        Args:
            base: as before afterwards.
            adapter: trained in this mode, or fused of such.
            saved: pristine weights kept from earlier calls with the same base; filled here.

        Raises:
            ModelError: the adapter does not fit the base.
        """
        ...

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return the network that an adapter was trained as, in evaluation mode.

        Args:
            folder: the adapter's, in the format of its kind.
            model: the base model, which is wrapped or changed in place.

        A network whose function includes what follows it, as an expansion does, has a method ``then(last)`` that
        returns the network with ``last`` inside, as `tangora.TangentModel` does.

        Raises:
            AdapterError: the folder holds no adapter that can be read.
            ModelError: the adapter does not fit the model.
        """
        ...


def mode_of(owner: Adapter | Metadata | FinetuneConfig | ModeConfig) -> Mode:
    """Return the mode of an adapter, of its metadata, or of a configuration.

    Raises:
        PluginError: it is no mode that is installed.

    >>> from tangora.config.settings import FinetuneConfig
    >>> mode_of(FinetuneConfig(train="tangent")).linear_in_coefficients
    True
    """
    named: Any = getattr(owner, "metadata", owner)
    return cast(Mode, MODES.get(named.train))
