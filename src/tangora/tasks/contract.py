"""The contracts of a family, a readout and a metric, for third parties to implement. This module imports no torch.

A **family** turns rows of a data set into inputs of a base model, and the model's features into answers::

    BaseSettings ── load ──> Base: a frozen backbone, a tokenizer or image processor
    rows ── targets ──> Targets: class names, a target per row
                      │  rows are split and limited here, the same way for every family
    rows, targets ── encode ──> inputs and labels, one entry per row     (once per run)
    task without a head ── finish ──> Task with what the readout needs
                      │
    entries ── collate ──> a padded batch
    batch ── backbone ──> whatever the model returns
           └─ Readout.features ──> one tensor, the same for every task that shares ``features_key``
                      └─ Readout.logits ──> logits ── Readout.losses ──> a loss per row
                                                    └─ Readout.answer ──> an answer per row
    answers, targets ── Metric.score ──> a number

A `TaskModel` is a backbone with the readout of one task. A **readout** may have parameters, such as a trained head.
They are trained with the adapter, and saved with it in ``heads/<task>.safetensors``.

A **metric** compares predictions with targets::

    predictions, targets ── score ──> a number
    predictions, targets, counts of resampled rows ── bootstrap ──> a number for each resample
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from tangora.config.tasks import BaseSettings, TaskSettings
from tangora.support.seams import FAMILIES

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from PIL.Image import Image
    from torch import Tensor, nn

    from tangora.tasks.base import Base
    from tangora.tasks.sources import Table
    from tangora.tasks.values import Batch, Collate, Task

__all__ = ["MAPS", "AnswerForm", "Answers", "Family", "LogitsOver", "Metric", "Readout", "Targets", "names_by_backbone"]

Answers: TypeAlias = Literal[
    "classes", "text", "number", "labels", "tags", "likelihood", "class_map", "binary_map", "number_map"
]
"""The kind of a model's answers, and the Python value of each.

- ``classes``: a class number (`int`) per row.
- ``text``: a text (`str`); a target may be a tuple of texts if several are correct.
- ``number``: a number (`float`).
- ``labels``: the class numbers of all labels of a row (a sorted `list`), for tasks with any number of labels.
- ``tags``: the name of a tag (`str`) for each word of a row (a `list`), as many in an answer as in its target.
- ``likelihood``: the total negative log-likelihood of a text in nats and the number of its tokens (a `list` of both);
  the target is the number of its bytes in UTF-8 (`int`). So a metric can be per token or per byte.
- ``class_map``: a class number for every pixel of an image: an array of uint8 of shape [height, width]. In a target,
  255 marks pixels that do not count.
- ``binary_map``: how likely every pixel is marked: an array of uint8, 255 times its probability. A target is 1 or 0,
  and 255 where it does not count.
- ``number_map``: a number for every pixel: an array of float32. In a target, NaN marks pixels that do not count.
"""

MAPS: frozenset[Answers] = frozenset(("class_map", "binary_map", "number_map"))
"""The kinds of answers with a value for every pixel."""

LogitsOver: TypeAlias = Literal["classes", "tokens", "tags", "labels"]
"""What the logits are distributions over.

- ``classes``: their softmax is over the classes of a row.
- ``tokens``: their softmax is over the vocabulary, for each target token.
- ``tags``: their softmax is over the tags, for each word: each entry of ``labels`` that is not ignored.
- ``labels``: the sigmoid of each logit is the probability of one label of a row, independent of the others. In a batch,
  ``labels`` are the numbers of a row's labels, padded with the ignored one.
"""


@dataclass(frozen=True)
class AnswerForm:
    """The form of the answers to a task.

    Attributes:
        kind: of the answers. Metrics for other kinds are refused.
        logits_over: what the logits are distributions over; None if they are none, as for a regression. Columns of the
            tangent expansion, and searches by gradients, exist for distributions. Fusions are scored on columns, and
            shown in the explorer, if logits are over classes.
    """

    kind: Answers
    logits_over: LogitsOver | None


_Base = TypeVar("_Base", bound=BaseSettings, contravariant=True)
_Task = TypeVar("_Task", bound=TaskSettings, contravariant=True)


@dataclass(frozen=True)
class Targets:
    """The expected answers of a task's rows.

    Attributes:
        classes: names of classes or tags, in label order; empty if the rows have none.
        of_split: split -> a target per row, of the kind of the task's answers (see `Answers`).
        stratify: whether splits and limits keep the targets' proportions; the targets must then be hashable.
    """

    classes: list[str]
    of_split: Mapping[str, list[Any]]
    stratify: bool


@runtime_checkable
class Family(Protocol[_Base, _Task]):
    """Turns rows into inputs of a model, and the model's outputs into answers.

    A family has no state. What it needs from a model is in a `Base`, and what it needs from a data set in a `Task`; it
    may derive its own classes from both. It also defines the classes of base and task settings: the keys of ``base``
    and of every entry of ``tasks`` in a recipe that names the family.

    Attributes:
        name: its name in recipes and ``tangora.json``; letters, digits and ``-``.
        base_settings: a frozen pydantic class derived from `BaseSettings`; an unknown key is an error.
        task_settings: a frozen pydantic class derived from `TaskSettings`.
        unused: children of the backbone to remove, because the family does not use them and checkpoints may lack their
            weights; adapters and fingerprints do not cover them.

    A family in which `finish` depends on the backbone's weights, because it embeds the class names with them, also has
    ``names_by_backbone = True``. A checkpoint that adapters were merged into then needs the unchanged base for that.
    """

    name: str
    base_settings: type[BaseSettings]
    task_settings: type[TaskSettings]
    unused: tuple[str, ...]

    def form(self, config: _Task, /) -> AnswerForm:
        """Return the form of the answers to a task with these settings."""
        ...

    def load(self, config: _Base, /) -> Base:
        """Load the pretrained model, and what is needed to preprocess rows.

        `tangora.tasks.load_base` then removes the ``unused`` children, freezes the backbone, and computes its
        fingerprint. Other modules of the base must be on the backbone's device when they are used.

        Raises:
            ModelError: the model is not found, or does not fit the family.
        """
        ...

    def targets(self, tables: Mapping[str, Table], config: _Task, /) -> Targets:
        """Return the expected answers of the rows of every split; this needs no model.

        Raises:
            DataError: a column is missing, or a row has no valid target; the message names it.
        """
        ...

    def encode(
        self, table: Table, targets: Sequence[Any], config: _Task, base: Base, /
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return inputs, one entry per row, by the backbone's names for them: unpadded 1-D tensors, or one tensor.

        A family that shortens rows returns a `tangora.tasks.values.Encoded`, which says which ones. Rows with
        ``input_ids`` of similar length share a batch. The loss is computed from ``labels``: one tensor per
        row if they are tokens. Omit them if they are the targets.

        Raises:
            DataError: a row cannot be encoded; the message names it.
        """
        ...

    def decides(self, config: _Task, base: Base, /) -> Mapping[str, Any]:
        """Return what affects answers besides rows, targets, class names and backbone, for the task's fingerprint."""
        ...

    def finish(self, task: Task, config: _Task, base: Base, /) -> Task:
        """Return the task with what its readout needs, such as embeddings of the class names."""
        ...

    def describe(self, task: Task, base: Base, /) -> Mapping[str, Any]:
        """Return what prediction needs besides settings and class names, as JSON, for ``heads/<task>.json``."""
        ...

    def collate(self, base: Base, /) -> Collate:
        """Return a function that collates entries of a split with ``labels`` into a padded batch; it can be pickled."""
        ...

    def readout(self, task: Task, base: Base, /) -> Readout:
        """Return a new readout of the task. Its parameters, if any, have the same initial values every time."""
        ...

    def followed(self, task: Task, /) -> Task | None:
        """Return a task with unit features as its logits, if this task's logits are a linear function of them.

        The readout of the returned task has no parameters. None if there are no such features. `tangora.distill` trains
        a student to follow them.
        """
        ...

    def examples(self, table: Table, config: _Task, /) -> Iterator[str | Image]:
        """Iterate over the rows in a form for people, for reports."""
        ...

    def auto_class(self, model: str, /) -> str:
        """Return the transformers class that loads the backbone of a checkpoint, for the code in a model card."""
        ...


def names_by_backbone(family: str) -> bool:
    """Return whether tasks of a family are finished with the weights of its backbone; see `Family`.

    >>> names_by_backbone("text-zero-shot"), names_by_backbone("image-zero-shot")
    (True, False)
    """
    return bool(getattr(FAMILIES.get(family), "names_by_backbone", False))


class Readout(Protocol):
    """Computes logits, losses and answers from a backbone's output: a `torch.nn.Module`, for one task of one base.

    If logits are over classes, derive from `tangora.tasks.readouts.ClassReadout`, and define `features` and `logits`.

    All computations must be differentiable in the backbone's weights, in both modes of differentiation: modes train
    through them, and expand them. Parameters of a readout (``parameters()``) are trained with an adapter, and its
    ``state_dict()`` is saved; register buffers that can be computed again with ``persistent=False``.

    Attributes:
        width: the number of logits for a row, or for a token.
        features_key: readouts of one base with equal keys compute the same features, so that rows of several tasks
            share a forward pass.
    """

    width: int
    features_key: Hashable

    def features(self, backbone: nn.Module, inputs: Batch, labels: Tensor | None, /) -> Tensor:
        """Compute the part that does not depend on the task, one entry per row.

        Args:
            backbone: the base's own, or a `PeftModel` around it.
            inputs: a batch without its labels.
            labels: those of the batch, for teacher forcing; None if they are not known.
        """
        ...

    def logits(self, features: Tensor, /) -> Float[Tensor, "batch *tokens width"]:
        """Return float32 logits of the rows (or of their targets' tokens, or of their pixels) from their features."""
        ...

    def losses(self, logits: Tensor, labels: Tensor, /) -> Float[Tensor, " batch"]:
        """Return a loss per row; training minimizes their mean."""
        ...

    def answer(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor, settle: Callable[[Tensor], Tensor] | None, /
    ) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return an answer and a loss per row.

        Args:
            backbone: as for `features`.
            inputs: a batch without its labels.
            labels: those of the batch.
            settle: None for an ordinary model. In an expanded one, tensors have a tangent, and ``settle`` returns
                primal plus tangent: apply it to logits before any operation that is not linear, such as the maximum.
        """
        ...

    def labels_of(self, texts: Sequence[str], /) -> list[Tensor]:
        """Return the labels of texts that a model generated, as `Family.encode` makes them of target texts.

        Only needed if answers are texts: a polish, and searches without labels, use the answers of the experts.
        """
        ...

    # A readout that generates may count, in an attribute ``unended``, the answers that `answer` gave without an end.
    # It may also have ``losses_only(backbone, inputs, labels)``: the losses without the logits of the batch, if
    # these are large. A training calls it in place of `losses` of `logits`.

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters that are trained, like every `torch.nn.Module`."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A score of predictions against targets, one of each per row.

    Both are plain Python values of one kind of `Answers` (maps are arrays), and texts have no white space around them.
    A metric that takes texts takes tuples of texts as targets. There is at least one row, and as many predictions as
    targets; `score` in `tangora.tasks.metrics` refuses anything else before it calls a metric.

    A metric has no state: equal arguments give equal results, and the arguments are not changed. The order of the rows
    does not matter. If it needs packages of one of Tangora's extras, an attribute ``extra`` may name this extra, so
    that a run fails at its beginning if they are missing.

    Attributes:
        name: its name in recipes and ``scores.csv``; letters, digits and ``_``.
        takes: the kinds of answers that it can compare; a recipe with another kind is refused.
        higher_is_better: whether a higher score is better. If not, no score is below 0, and a fusion keeps the share
            ``expert / fusion`` of an expert's score: see `tangora.evaluation.shares.kept`.
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

        The result is `score` of the repeated rows, up to rounding. A run computes thousands of resamples of every
        prediction, so use sums over rows (a confusion matrix, the number of correct rows) instead of calling `score`.
        If there is no such way, return ``tangora.tasks.metrics.resampled(self, ...)``.
        """
        ...
