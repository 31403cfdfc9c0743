"""Which tensor of which checkpoint meets which: one `Target` per tensor of the output, or an error.

The output has the base's tensors, no more and no fewer. Nothing is skipped in silence: a tensor in one checkpoint but
not in another is an error unless ``allow_missing`` names it, and integers must be equal everywhere. Vocabularies may
have grown: see `tangora.checkpoints.vocabulary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tangora.checkpoints.vocabulary import Vocabulary, compare, owners, resized
from tangora.errors import ArgumentError, FusionError
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import FLOATS, ITEMSIZE, Stored

if TYPE_CHECKING:
    from tangora.checkpoints.onto_base import Added, Stacked

__all__ = ["Alignment", "Target", "align"]

_SAME = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rope_theta")
_PLACE = "fuse.checkpoints"
_MISSING = "if that is meant, name it with allow_missing, --allow-missing"


@dataclass(frozen=True)
class Target:
    """One tensor of the output.

    Args:
        name: the base's name for it.
        base: where the base's tensor lies.
        parts: per model, what is fused: a tensor from which the base's is subtracted, or an adapter's update; None
            where the model has nothing here, which is an update of zero.
        start: what every model's adapter added before it was trained, where that is not zero.
        site: the adapters' name for it, which decides random numbers and weights; empty: the base's.
        mean: the result is the mean of ``base`` and ``parts``, whatever the method: rows that the base does not have,
            of the models that have them.
        tails: rows that follow the base's in the same tensor, each run of them a target of its own.
    """

    name: str
    base: Stored
    parts: tuple[Stored | Added | Stacked | None, ...]
    start: Added | None = None
    site: str = ""
    mean: bool = False
    tails: tuple[Target, ...] = ()

    @property
    def key(self) -> str:
        """What random numbers and weights know it by."""
        return self.site or self.name

    @property
    def changed(self) -> bool:
        """Whether any model has something here."""
        return any(part is not None for part in self.parts)

    @property
    def by_method(self) -> bool:
        """Whether the method decides what it becomes."""
        return self.fused and self.changed and not self.mean

    @property
    def adapted(self) -> bool:
        """Whether an adapter's update is added here."""
        return any(part is not None and not isinstance(part, Stored) for part in (*self.parts, self.start))

    @property
    def fused(self) -> bool:
        """Whether it can be averaged; integers are copied."""
        return self.base.dtype in FLOATS

    @property
    def entries(self) -> int:
        """How many numbers it has."""
        return self.base.entries

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor in the output, with the rows that follow."""
        rows = sum(tail.base.shape[0] for tail in self.tails)
        return (self.base.shape[0] + rows, *self.base.shape[1:]) if rows else self.base.shape

    @property
    def width(self) -> int:
        """Numbers in a row of the first dimension."""
        return max(1, self.entries // max(1, self.base.shape[0])) if self.base.shape else 1

    @property
    def row_block(self) -> int:
        """Numbers in a block of whole rows; fixed, as a product of factors may round otherwise in another shape."""
        return self.width * max(1, 2**18 // self.width)


@dataclass(frozen=True)
class Alignment:
    """The targets, the output's configuration and tokenizer, and what is to be known of it, in words."""

    targets: list[Target]
    config: Mapping[str, Any]
    vocabulary: Vocabulary
    notes: list[str] = field(default_factory=list)


def align(base: Checkpoint, models: Sequence[Checkpoint], allow_missing: Sequence[str] = ()) -> Alignment:
    """Pair the tensors of fine-tuned checkpoints with their base's.

    Raises:
        FusionError: other architectures, shapes or names; vocabularies that do not begin alike.
        ArgumentError: a pattern of ``allow_missing`` matches no tensor.
    """
    notes: list[str] = []
    for model in models:
        _same_architecture(base, model)
        notes += _extra(base, model, allow_missing)
    targets = [_target(stored, base, models, allow_missing, notes) for stored in base.tensors.values()]
    used = [name for name in allow_missing if not any(fnmatchcase(t, name) for m in (base, *models) for t in m.tensors)]
    if used:
        raise ArgumentError("matches no tensor", got=used[0], where="fuse.allow_missing", fix="correct the name")
    rows = _rows(targets)
    vocabulary = compare(base, models, rows)
    if rows is not None:
        targets = [_grown(target, vocabulary) if _longer(target) else target for target in targets]
    config = base.config if rows is None else resized(base.config, rows)
    return Alignment(targets, config, vocabulary, [*notes, *vocabulary.notes])


def _same_architecture(base: Checkpoint, model: Checkpoint) -> None:
    for key in _SAME:
        ours, theirs = base.config.get(key), model.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            what = f"{model.name} is of another architecture: {key} is {theirs!r}, in the base {ours!r}"
            raise FusionError(what, where=model.folder, fix="fuse fine-tuned versions of one base")


def _extra(base: Checkpoint, model: Checkpoint, allowed: Sequence[str]) -> list[str]:
    """Tensors that the base does not have: words for those that may be left out, an error for the others."""
    extra = [name for name in model.tensors if name not in base.tensors and name not in model.tied]
    left = [name for name in extra if any(fnmatchcase(name, pattern) for pattern in allowed)]
    for name in (name for name in extra if name not in left):
        what, fix = f"{model.name} has a tensor that the base has not", _MISSING
        if name in base.tied:
            what = f"{model.name} has an output head of its own, the base's is tied to its embedding"
            fix = "untie the base"
        raise FusionError(what, got=name, where=_PLACE, fix=fix)
    return [f"{model.name}: {name} is not in the base, and left out" for name in left]


def _target(
    stored: Stored, base: Checkpoint, models: Sequence[Checkpoint], allowed: Sequence[str], notes: list[str]
) -> Target:
    parts: list[Stored | Added | Stacked | None] = []
    first = base.find(stored.name) or stored
    for model in models:
        found = model.find(stored.name)
        if found is None:
            if not any(fnmatchcase(stored.name, pattern) for pattern in allowed):
                what = f"{model.name} lacks a tensor of the base"
                raise FusionError(what, got=stored.name, where=_PLACE, fix=_MISSING)
            notes.append(f"{model.name}: {stored.name} is missing, and counts as unchanged")
        else:
            _comparable(stored.name, first, found, model)
        parts.append(found)
    return Target(stored.name, first, tuple(parts))


def _comparable(name: str, base: Stored, found: Stored, model: Checkpoint) -> None:
    where = f"{name} in {found.path}"
    if (base.dtype in FLOATS) != (found.dtype in FLOATS) or (base.dtype not in FLOATS and base.dtype != found.dtype):
        what = f"dtypes that cannot be averaged: {found.dtype}, in the base {base.dtype}"
        raise FusionError(what, where=where, fix="convert the checkpoint to bfloat16, float16 or float32")
    if base.shape == found.shape:
        return
    rows = base.shape and found.shape and base.shape[1:] == found.shape[1:]
    if not rows or not _is_vocabulary(name) or found.shape[0] < base.shape[0]:
        what = f"the shapes differ: {model.name} has {list(found.shape)}, the base {list(base.shape)}"
        raise FusionError(what, where=name, fix="fuse fine-tuned versions of one base")


def _is_vocabulary(name: str) -> bool:
    parts = name.split(".")
    layer = parts[-2] if len(parts) > 1 else ""
    other = any(word in layer for word in ("position", "type", "patch"))
    return layer in ("wte", "shared", "lm_head") or ("embed" in layer and not other)


def _length(target: Target) -> int:
    """Rows of the longest: the base's, or a model's."""
    stored = [target.base, *(part for part in target.parts if isinstance(part, Stored))]
    return max(s.shape[0] if s.shape else 0 for s in stored)


def _longer(target: Target) -> bool:
    return target.base.shape != () and _length(target) > target.base.shape[0]


def _rows(targets: Sequence[Target]) -> int | None:
    """Rows of the output's vocabulary, where they are more than the base's."""
    grown = {target.base.shape[0] for target in targets if _longer(target)}
    same = [t for t in targets if t.base.shape and t.base.shape[0] in grown and _is_vocabulary(t.name)]
    lengths = sorted({_length(target) for target in same})
    if len(lengths) > 1:
        fix = "resize embedding and output head of a model together"
        where = ", ".join(target.name for target in same)
        raise FusionError("vocabularies of different lengths", got=lengths, where=where, fix=fix)
    return lengths[0] if lengths else None


def _grown(target: Target, vocabulary: Vocabulary) -> Target:
    """The target with the rows that the base does not have."""
    lengths = [part.shape[0] if isinstance(part, Stored) else 0 for part in target.parts]
    tails = []
    for models, start, stop in owners(target.base.shape[0], lengths, vocabulary.ids):
        first, *rest = (_cut(part, start, stop) for i in models if isinstance(part := target.parts[i], Stored))
        tails.append(Target(target.name, first, tuple(rest), mean=True))
    return replace(target, tails=tuple(tails))


def _cut(stored: Stored, start: int, stop: int) -> Stored:
    """Rows of a tensor in a file, as a tensor."""
    row = stored.entries // stored.shape[0] * ITEMSIZE[stored.dtype]
    shape = (stop - start, *stored.shape[1:])
    return replace(stored, shape=shape, start=stored.start + start * row, size=(stop - start) * row)
