"""Pair the tensors of checkpoints by name: one `Target` per tensor of the output, or an error.

The output has exactly the base's tensors. Nothing is skipped silently: a tensor in one checkpoint but not in another is
an error unless ``allow_missing`` names it, and integers must be equal everywhere. Vocabularies may have grown: see
`tangora.checkpoints.vocabulary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tangora.checkpoints.architecture import differences
from tangora.checkpoints.meaning import check_ties, compare_labels
from tangora.checkpoints.vocabulary import Vocabulary, compare, owners, resized
from tangora.errors import ArgumentError, FusionError
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import FLOATS, ITEMSIZE, Stored

if TYPE_CHECKING:
    from tangora.checkpoints.onto_base import OrientedUpdate, StackedExperts

__all__ = ["Alignment", "Target", "align", "refuse_other_architecture"]

_MOST = 3  # keys of another architecture that an error lists
_LONGEST = 80  # characters of a value
_WHERE = "fuse.checkpoints"
_MISSING = "if this is intended, name it with allow_missing, --allow-missing"


@dataclass(frozen=True)
class Target:
    """One tensor of the output.

    Args:
        name: the base's name for it.
        base: the base's stored tensor.
        parts: one per model: a stored tensor, from which the base's is subtracted, or an adapter's update; None if the
            model has neither, which is an update of zero.
        start: what every model's adapter added before it was trained; None if that is zero.
        site: the adapters' name for it, from which random numbers and weights follow; if empty, the base's name.
        mean: the result is the mean of ``base`` and ``parts`` for every method: rows that the base does not have, of
            the models that have them.
        tails: rows that follow the base's in the same tensor; each run of rows is a target.
    """

    name: str
    base: Stored
    parts: tuple[Stored | OrientedUpdate | StackedExperts | None, ...]
    start: OrientedUpdate | None = None
    site: str = ""
    mean: bool = False
    tails: tuple[Target, ...] = ()

    @property
    def key(self) -> str:
        """The name from which random numbers and weights follow."""
        return self.site or self.name

    @property
    def stored(self) -> list[Stored]:
        """The tensors that are read from checkpoints: the base's first, then those of the models that have one."""
        return [self.base, *(part for part in self.parts if isinstance(part, Stored))]

    @property
    def changed(self) -> bool:
        """Whether any model has a part."""
        return any(part is not None for part in self.parts)

    @property
    def by_method(self) -> bool:
        """Whether the method computes the result."""
        return self.fused and self.changed and not self.mean

    @property
    def adapted(self) -> bool:
        """Whether an adapter's update is added here."""
        return any(part is not None and not isinstance(part, Stored) for part in (*self.parts, self.start))

    @property
    def fused(self) -> bool:
        """Whether it is of floating point; integers are copied."""
        return self.base.dtype in FLOATS

    @property
    def entries(self) -> int:
        """The number of entries."""
        return self.base.entries

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor in the output, with the rows of the tails."""
        rows = sum(tail.base.shape[0] for tail in self.tails)
        return (self.base.shape[0] + rows, *self.base.shape[1:]) if rows else self.base.shape

    @property
    def width(self) -> int:
        """The number of entries per index of the first dimension."""
        return max(1, self.entries // max(1, self.base.shape[0])) if self.base.shape else 1

    @property
    def row_block(self) -> int:
        """Entries in a block of whole rows; fixed, since a product of factors may round differently in other shapes."""
        return self.width * max(1, 2**18 // self.width)


@dataclass(frozen=True)
class Alignment:
    """The targets, the output's configuration and tokenizer, and notes for the user."""

    targets: list[Target]
    config: Mapping[str, Any]
    vocabulary: Vocabulary
    notes: list[str] = field(default_factory=list)


def align(base: Checkpoint, models: Sequence[Checkpoint], allow_missing: Sequence[str] = ()) -> Alignment:
    """Pair the tensors of fine-tuned checkpoints with their base's.

    Raises:
        FusionError: architectures, shapes or names differ, or a vocabulary does not begin with the base's.
        ArgumentError: a pattern of ``allow_missing`` matches no tensor.
    """
    notes: list[str] = compare_labels([base, *models])
    for checkpoint in (base, *models):
        check_ties(checkpoint)
    for model in models:
        refuse_other_architecture(base, model)
        notes += _extra(base, model, allow_missing)
    targets = [_target(stored, base, models, allow_missing, notes) for stored in base.tensors.values()]
    names = {name for checkpoint in (base, *models) for name in checkpoint.tensors}
    if unused := [pattern for pattern in allow_missing if not any(fnmatchcase(name, pattern) for name in names)]:
        raise ArgumentError("matches no tensor", got=unused[0], where="fuse.allow_missing", fix="correct the name")
    rows = _rows(targets)
    vocabulary = compare(base, models, rows)
    if rows is not None:
        targets = [_grown(target, vocabulary) if _longer(target) else target for target in targets]
    config = base.config if rows is None else resized(base.config, rows)
    return Alignment(targets, config, vocabulary, [*notes, *vocabulary.notes])


def refuse_other_architecture(base: Checkpoint, model: Checkpoint) -> None:
    """Refuse a model whose configuration defines another function than its base's.

    Raises:
        FusionError: the message lists the first keys that differ.
    """
    if found := differences(base.config, model.config):
        listed = "; ".join(
            f"{key} is {_value(theirs)}, in the base {_value(ours)}" for key, theirs, ours in found[:_MOST]
        )
        more = f"; and {len(found) - _MOST} more keys" if len(found) > _MOST else ""
        fix = "fuse fine-tuned versions of one base; or correct config.json if it is not the model's"
        raise FusionError(f"{model.name} has another architecture: {listed}{more}", where=model.folder, fix=fix)


def _value(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _extra(base: Checkpoint, model: Checkpoint, allowed: Sequence[str]) -> list[str]:
    """Return a note for every tensor that the base does not have; raise unless it may be left out."""
    extra = [n for n in model.tensors if n not in model.tied and (n not in base.tensors or n in base.tied)]
    left = [name for name in extra if any(fnmatchcase(name, pattern) for pattern in allowed)]
    for name in (name for name in extra if name not in left):
        what, fix = f"{model.name} has a tensor that the base does not have", _MISSING
        if name in base.tied:
            what = f"{model.name} has a separate output head, the base's is tied to its embedding"
            fix = "untie the base"
        raise FusionError(what, got=name, where=_WHERE, fix=fix)
    return [f"{model.name}: {name} is not in the base, and is left out" for name in left]


def _target(
    stored: Stored, base: Checkpoint, models: Sequence[Checkpoint], allowed: Sequence[str], notes: list[str]
) -> Target:
    parts: list[Stored | OrientedUpdate | StackedExperts | None] = []
    first = base.find(stored.name) or stored
    for model in models:
        part = model.find(stored.name)
        if part is None:
            if not any(fnmatchcase(stored.name, pattern) for pattern in allowed):
                what = f"{model.name} lacks a tensor of the base"
                raise FusionError(what, got=stored.name, where=_WHERE, fix=_MISSING)
            notes.append(f"{model.name}: {stored.name} is missing, and counts as unchanged")
        else:
            _check_comparable(stored.name, first, part, model)
        parts.append(part)
    return Target(stored.name, first, tuple(parts))


def _check_comparable(name: str, base: Stored, part: Stored, model: Checkpoint) -> None:
    where = f"{name} in {part.path}"
    if (base.dtype in FLOATS) != (part.dtype in FLOATS) or (base.dtype not in FLOATS and base.dtype != part.dtype):
        what = f"dtypes that cannot be fused: {part.dtype}, in the base {base.dtype}"
        raise FusionError(what, where=where, fix="convert the checkpoint to bfloat16, float16 or float32")
    if base.shape == part.shape:
        return
    rows = base.shape and part.shape and base.shape[1:] == part.shape[1:]
    if not rows or not _is_vocabulary(name) or part.shape[0] < base.shape[0]:
        what = f"the shapes differ: {model.name} has {list(part.shape)}, the base {list(base.shape)}"
        raise FusionError(what, where=name, fix="fuse fine-tuned versions of one base")


def _is_vocabulary(name: str) -> bool:
    parts = name.split(".")
    layer = parts[-2] if len(parts) > 1 else ""
    other = any(word in layer for word in ("position", "type", "patch"))
    return layer in ("wte", "shared", "lm_head") or ("embed" in layer and not other)


def _length(target: Target) -> int:
    """Return the number of rows of the longest stored tensor."""
    return max(stored.shape[0] if stored.shape else 0 for stored in target.stored)


def _longer(target: Target) -> bool:
    return target.base.shape != () and _length(target) > target.base.shape[0]


def _rows(targets: Sequence[Target]) -> int | None:
    """Return the number of rows of the output's vocabulary; None if no model has more rows than the base."""
    grown = {target.base.shape[0] for target in targets if _longer(target)}
    same = [t for t in targets if t.base.shape and t.base.shape[0] in grown and _is_vocabulary(t.name)]
    lengths = sorted({_length(target) for target in same})
    if len(lengths) > 1:
        fix = "resize embedding and output head of a model together"
        where = ", ".join(target.name for target in same)
        raise FusionError("vocabularies of different lengths", got=lengths, where=where, fix=fix)
    return lengths[0] if lengths else None


def _grown(target: Target, vocabulary: Vocabulary) -> Target:
    """Return the target with the rows that the base does not have."""
    lengths = [part.shape[0] if isinstance(part, Stored) else 0 for part in target.parts]
    tails = []
    for models, start, stop in owners(target.base.shape[0], lengths, vocabulary.ids):
        first, *rest = (_cut(part, start, stop) for i in models if isinstance(part := target.parts[i], Stored))
        tails.append(Target(target.name, first, tuple(rest), mean=True))
    return replace(target, tails=tuple(tails))


def _cut(stored: Stored, start: int, stop: int) -> Stored:
    """Return rows of a stored tensor as a stored tensor."""
    row = stored.entries // stored.shape[0] * ITEMSIZE[stored.dtype]
    shape = (stop - start, *stored.shape[1:])
    return replace(stored, shape=shape, start=stored.start + start * row, size=(stop - start) * row)
