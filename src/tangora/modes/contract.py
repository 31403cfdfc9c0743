"""The contract of a mode: a way to train adapters, and to answer with them.

A mode is one object, looked up by name: ours by file (`tangora.modes.kinds`), another package's by an entry point of
the group ``tangora.modes``. Code that depends on how an adapter was trained calls the adapter's mode (`mode_of`).
`tangora.testing.check_mode` checks the promises below on a tiny model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

from tangora.adapters.kinds import KINDS, KindName
from tangora.support.seams import MODES

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor, nn

    from tangora.adapters.adapter import Adapter
    from tangora.adapters.heads import HeadRecord
    from tangora.adapters.metadata import Metadata
    from tangora.config.mode import ModeConfig
    from tangora.config.settings import FinetuneConfig
    from tangora.progress import Progress
    from tangora.tasks import Base, Task, TaskModel

__all__ = ["Bench", "Footprint", "Mode", "OnStep", "is_fusable", "is_routable", "mode_of", "reporting"]

OnStep: TypeAlias = Callable[[int, int, float], None]
"""Called after each step with (step, total steps, loss)."""


def reporting(progress: Progress, on_step: OnStep | None, *, digits: int = 3) -> OnStep:
    """Return a function that shows each step's loss as progress, and passes the step to ``on_step`` if there is one."""

    def report(step: int, total: int, loss: float) -> None:
        progress.update(step, f"loss {loss:.{digits}f}")
        if on_step is not None:
            on_step(step, total, loss)

    return report


@dataclass(frozen=True)
class Bench:
    """The model, folders and callbacks of a training, and the records that it fills in.

    Attributes:
        base: the model; a mode adapts it in place and restores it.
        scratch: folder for checkpoints to resume from; None for no checkpoints.
        logs: folder for TensorBoard.
        on_step: called after each step, in the main process.
        model_of: task -> the model to train in place of the mode's own: a student (`tangora.distill`).
        records: task -> loss and validation curves, wall time and parameter counts, filled by `tangora.modes.session`
            and written to ``training.json``.
        heads: task -> the parameters of its readout, if it has any, filled by `tangora.modes.session` too and added to
            the adapters.
        head_records: task -> what prediction needs, filled and added likewise.
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
    """The size of one adapter of a mode.

    Attributes:
        sites: adapted layers, or parameters.
        trainable: numbers that are trained.
        size: bytes on disk.
        adapted: numbers of the weights that it changes.
    """

    sites: int
    trainable: int
    size: int
    adapted: int = 0


@runtime_checkable
class Mode(Protocol):
    """A way to train adapters, and to answer with them.

    Attributes:
        name: the registered name: the value of ``modes.NAME.train`` in a recipe and of ``train`` in ``tangora.json``.
        settings: a frozen pydantic class (`tangora.config.settings.Frozen`) with the mode's keys as fields. Fields
            named ``lora`` and ``training`` start from the sections of the recipe. `AdapterSettings` has both,
            `WeightSettings` only ``training``.
        default_rate: the learning rate if a recipe gives none.
        passes: the cost of a training step per row, in forward passes; a backward pass counts as two.
        joint: whether it trains several tasks in one job. If not, every job has one task.
        kind: the kind of its adapters: ``lora`` (low-rank updates of layers, which stock peft loads), ``full``
            (changes of whole parameters), ``modules`` (parameters of modules that the mode adds to the network) or
            ``routed`` (such modules with a router between experts).
        linearize: what is replaced by its first-order expansion at φ₀, as recorded in ``tangora.json``: ``none``, each
            adapted ``module``, or the whole ``model``.
        answers: how its adapters answer: ``weights`` (the updates are added to the base's weights), ``tangent`` (the
            network is expanded in their direction), or the mode's own word. Adapters with equal updates and equal
            ``answers`` have equal scores.
        linear_in_coefficients: whether logits are linear in fusion coefficients. If so, columns can be made of them
            (`tangora.tangent.Columns`): every fusion is scored without a forward pass, and finding the best one is a
            convex problem.
        can_be_student: whether it can train ``bench.model_of``: an ordinary forward pass with LoRA layers, since
            `tangora.distill` scales their updates.

    A mode may also have ``fusable``: whether fusions of its adapters make sense (`is_fusable`). It is False for a joint
    mode with one adapter for all tasks; it must be True for adapters of kind ``modules`` that may be fused, since the
    sum of their parameters is the sum of their functions. If that depends on how they were trained, it is a function
    of a mapping: of the mode's keys in a recipe, or of an adapter's ``metadata.modules``, which then contains the keys
    that decide. It may have ``routable = False``, if it is of kind ``lora`` and its adapters are no low-rank experts
    (`is_routable`). One that only answers, with adapters that a router makes, has ``trains = False``; its `check`,
    `footprint` and `train` raise `ModelError`.

    A mode whose settings name files has ``reads``: configuration -> a JSON list that determines what is read from them,
    which the key of its adapters then covers (`tangora.modes.stage`).

    A mode that an encoder of texts does not fit has ``tiny``, the name of the base on which `check_mode` trains it:
    ``vision-language``.

    One that trains nothing but plain LoRA layers, linearized or not, has ``plain_layers = True``: then
    ``training.orthogonality`` and ``training.progressive`` apply to it.

    A joint mode that can train a further task alone, from what it has learned of others, has ``extends = True``.

    A mode promises:

    1. `train` returns the same adapters for the same seed. It leaves the base unchanged bit for bit, also if it raises.
       It raises `ModelError` instead of returning weights that are not finite.
    2. `answering` gives the logits of the trained model, and leaves the base unchanged.
    3. An adapter that was saved and loaded gives the same answers, by `answering` and by `load_model`.
    4. With ``linear_in_coefficients``, the logits of ``c · adapter`` are ``origin + c · column``.
    5. `check` refuses, before anything is trained, settings with which `train` would fail.
    """

    name: str
    settings: type[BaseModel]
    default_rate: float
    passes: int
    joint: bool
    kind: KindName
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
        """Return a context manager for a function, task -> model, whose models answer with an adapter.

        Args:
            base: as before afterwards.
            adapter: trained in this mode, or fused from such adapters.
            saved: pristine weights kept from earlier calls with the same base; filled here.

        Raises:
            ModelError: the adapter does not fit the base.
        """
        ...

    def load_model(self, folder: Path, model: nn.Module) -> nn.Module:
        """Return the network in the form in which the adapter was trained, in evaluation mode.

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
        PluginError: the mode is not installed.

    >>> from tangora.config.settings import FinetuneConfig
    >>> mode_of(FinetuneConfig(train="tangent")).linear_in_coefficients
    True
    """
    named: Any = getattr(owner, "metadata", owner)
    return cast(Mode, MODES.get(named.train))


def is_fusable(mode: Mode, keys: Mapping[str, Any]) -> bool:
    """Return whether fusions of adapters that a mode trains with its ``keys`` in a recipe make sense; see `Mode`."""
    fusable = getattr(mode, "fusable", not KINDS[mode.kind].adds_modules)
    return bool(fusable(keys) if callable(fusable) else fusable)


def is_routable(mode: Mode, router: object = None) -> bool:
    """Return whether a mode's adapters are experts that a router can choose among: low-rank, beside one network.

    Args:
        mode: of the experts.
        router: may take other ``kinds``, or only ``linearized`` experts; see `tangora.routing.contract.Router`.
    """
    kinds, linearized = getattr(router, "kinds", ("lora",)), getattr(router, "linearized", False)
    plain = mode.kind in kinds and mode.linearize != "model" and mode.answers == "weights"
    plain = plain and (mode.linearize == "module" or not linearized)
    return plain and bool(getattr(mode, "routable", True))
