"""The contracts of what a task consists of. A third party implements them; nothing here imports torch.

A **family** makes rows of a data set into inputs of a base model, and features of the model into answers::

    BaseSettings ── load ──> Base: a frozen backbone, a tokenizer or image processor
    rows ── targets ──> Targets: class names, a target per row
                      │  rows are split and limited here, the same way for every family
    rows, targets ── encode ──> inputs and labels, one entry per row     (once per run)
    task without a head ── finish ──> Task: with what the readout needs
                      │
    entries ── collate ──> a padded batch
    batch ── backbone ──> whatever the model returns
           └─ Readout.features ──> one tensor, the same for every task that shares ``features_key``
                      └─ Readout.logits ──> logits ── Readout.losses ──> a loss per row
                                                    └─ Readout.answer ──> an answer per row
    answers, targets ── Metric.score ──> a number

A `TaskModel` is a backbone and the readout of one task. A **readout** may have parameters, such as a trained head: they
are trained with the adapter, and travel with it in ``heads/<task>.safetensors``.

A **metric** compares predictions with targets::

    predictions, targets ── score ──> a number
    predictions, targets, counts of resampled rows ── bootstrap ──> a number for each resample
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from tangora.config.tasks import BaseSettings, TaskSettings

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from PIL.Image import Image
    from torch import Tensor, nn

    from tangora.tasks.base import Base
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch, Collate, Task

__all__ = ["Answers", "Family", "LogitsOver", "Metric", "Readout", "Targets"]

Answers: TypeAlias = Literal["classes", "text", "number"]
"""What a model answers a row with: the number of a class, a text, or a number."""

LogitsOver: TypeAlias = Literal["classes", "tokens"]
"""What logits, after a softmax, are a distribution of: the classes of a row, or the vocabulary at a target's token."""

_Base = TypeVar("_Base", bound=BaseSettings, contravariant=True)
_Task = TypeVar("_Task", bound=TaskSettings, contravariant=True)


@dataclass(frozen=True)
class Targets:
    """What the rows of a task are to be answered with.

    Attributes:
        classes: names in label order; empty if the rows do not fall into classes.
        of_split: split -> a target per row: a class number, a text or a number.
        stratify: whether splits and limits keep the targets in proportion; they must be hashable then.
    """

    classes: list[str]
    of_split: Mapping[str, list[Any]]
    stratify: bool


@runtime_checkable
class Family(Protocol[_Base, _Task]):
    """How rows become inputs of a model, and what the model returns becomes answers.

    A family is a value without state. All that it needs of a model is in a `Base`, and all that it needs of a data set
    in a `Task`; it may derive classes of its own from both. Base and task settings are classes of its own too: the
    keys of ``base`` and of every entry of ``tasks`` in a recipe that names the family.

    Attributes:
        name: what recipes and ``tangora.json`` call it; letters, digits and ``-``.
        base_settings: a frozen pydantic class derived from `BaseSettings`; an unknown key is an error.
        task_settings: one derived from `TaskSettings`.
        answers: what its models answer a row with. Metrics that do not take it are refused.
        logits_over: what logits are a distribution of; None if they are none, as for a regression. Columns of the
            tangent expansion, and searches by gradients, exist for logits over classes and tokens; fusions are scored
            on columns, and shown in the explorer, where logits are over classes.
        unused: children of the backbone that are taken out, since nothing reads them and checkpoints may lack their
            weights; adapters and fingerprints do not cover them.
    """

    name: str
    base_settings: type[BaseSettings]
    task_settings: type[TaskSettings]
    answers: Answers
    logits_over: LogitsOver | None
    unused: tuple[str, ...]

    def load(self, config: _Base, /) -> Base:
        """Return the pretrained model, with what is needed to preprocess rows.

        `tangora.tasks.load_base` then takes out what is ``unused``, freezes the backbone, and takes its fingerprint.
        What the base holds besides the backbone must follow the backbone's device when it is used.

        Raises:
            ModelError: the model is not found, or does not fit the family.
        """
        ...

    def targets(self, tables: Mapping[str, Table], config: _Task, /) -> Targets:
        """Return what the rows of every split are to be answered with; no model is needed.

        Raises:
            DataError: a column is missing, or a row has no valid target; the message names it.
        """
        ...

    def encode(
        self, table: Table, targets: Sequence[Any], config: _Task, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return inputs, one entry per row, by the names that the backbone takes: unpadded 1-D tensors, or one tensor.

        ``input_ids``, if there are any, decide which rows share a batch: those of similar length. ``labels`` are what
        the loss is computed from: one tensor per row if they are tokens; leave them out if they are the targets.

        Raises:
            DataError: a row cannot be encoded; the message names it.
        """
        ...

    def decides(self, config: _Task, base: Base, /) -> Mapping[str, Any]:
        """Return what decides answers besides rows, targets, class names and backbone, for the task's fingerprint."""
        ...

    def finish(self, task: Task, config: _Task, base: Base, /) -> Task:
        """Return the task with what its readout needs, such as embeddings of the class names."""
        ...

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return what prediction needs besides settings and class names, as JSON, for ``heads/<task>.json``."""
        ...

    def collate(self, base: Base, /) -> Collate:
        """Return a function, which can be pickled, from entries of a split with ``labels`` to a padded batch."""
        ...

    def readout(self, task: Task, base: Base, /) -> Readout:
        """Return a new readout of the task. Its parameters, if any, start at the same values every time."""
        ...

    def followed(self, task: Task, /) -> Task | None:
        """Return the task whose logits are the features that this task's logits are a linear function of.

        They are unit vectors, and its readout has no parameters; None if there are no such features. A student is
        trained to follow them by `tangora.distill`.
        """
        ...

    def examples(self, table: Table, config: _Task, /) -> Iterator[str | Image]:
        """Iterate over the rows as a person would look at them, for reports."""
        ...

    def auto_class(self, model: str, /) -> str:
        """Return the class of transformers that loads the backbone of a checkpoint, for the code in a model card."""
        ...


class Readout(Protocol):
    """What makes logits, losses and answers of a backbone's output: a `torch.nn.Module`, for one task of one base.

    Derive one from `tangora.tasks.readouts.ClassReadout` if logits are of classes: `features` and `logits` are left.

    Everything that is computed must be differentiable in the backbone's weights, in both directions: modes train
    through it, and expand it. Parameters of a readout (``parameters()``) are trained with an adapter, and its
    ``state_dict()`` is what travels; buffers that can be made again are registered with ``persistent=False``.

    Attributes:
        width: how many logits there are for a row, or for a token.
        features_key: readouts of one base whose keys are equal compute the same features, so that rows of several tasks
            share a forward pass.
    """

    width: int
    features_key: Hashable

    def features(self, backbone: nn.Module, inputs: Batch, labels: Tensor | None, /) -> Tensor:
        """Return what is computed before anything of the task, one entry per row.

        Args:
            backbone: the base's own, or a `PeftModel` around it.
            inputs: a batch without its labels.
            labels: those of the batch, for teacher forcing; None where they are not known.
        """
        ...

    def logits(self, features: Tensor, /) -> Float[Tensor, "batch *tokens width"]:
        """Return float32 logits of the rows (or of the tokens of their targets) whose features are given."""
        ...

    def losses(self, logits: Tensor, labels: Tensor, /) -> Float[Tensor, " batch"]:
        """Return a loss per row, whose mean is minimized."""
        ...

    def answer(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor, settle: Callable[[Tensor], Tensor] | None, /
    ) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return an answer and a loss per row.

        Args:
            backbone: as for `features`.
            inputs: a batch without its labels.
            labels: those of the batch.
            settle: None for an ordinary model. In an expanded one, tensors carry a tangent, and ``settle`` returns
                primal plus tangent: apply it to logits before anything not linear in them, such as the largest one.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over what is trained, as every `torch.nn.Module` does."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A score of predictions against targets, one of each per row.

    Both come as plain Python values, of one kind of `Answers`: class numbers in [0, classes), texts without
    surrounding white space, or numbers. There is at least one row, and as many predictions as targets; `score` in
    `tangora.tasks.metrics` refuses anything else before a metric is called.

    A metric is a value without state: equal arguments give equal results, and the arguments are not changed. The order
    of the rows does not matter.

    Attributes:
        name: what recipes and ``scores.csv`` call it; letters, digits and ``_``.
        takes: the kinds of answers that it can compare; a recipe with another kind is refused.
        higher_is_better: whether a model with a higher score is the better one. Where it is false, 0 is a perfect
            score and none is below, as for an error rate: see `tangora.evaluation.results.kept`.
    """

    name: str
    takes: frozenset[Answers]
    higher_is_better: bool

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the score; NaN only if it is undefined for these rows."""
        ...

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Return the score of every resample; row ``i`` is ``counts[k, i]`` times in resample ``k``.

        The result is `score` of the repeated rows, up to rounding. A run asks for thousands of resamples of every
        prediction, so compute it from sums over rows (a confusion matrix, the number of right rows) rather than by
        calling `score`. Where there is no such way, return ``tangora.tasks.metrics.resampled(self, ...)``.
        """
        ...
