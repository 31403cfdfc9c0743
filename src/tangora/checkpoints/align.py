"""Which tensor of which checkpoint meets which: one `Target` per tensor of the output, or an error.

The output has the base's tensors, no more and no fewer. Nothing is skipped in silence: a tensor in one checkpoint but
not in another is an error unless ``allow_missing`` names it, and integers must be equal everywhere.

Vocabularies: a model with more rows in its embeddings than the base is fused over the base's rows, and only when the
tokenizers say that these are the same tokens; the rows beyond belong to tokens that the output does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora._io import read_json
from tangora.checkpoints.header import FLOATS, Stored
from tangora.checkpoints.reader import Checkpoint
from tangora.errors import AdapterError, FusionError

if TYPE_CHECKING:
    from tangora.checkpoints.onto import Added, Stacked

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
    """

    name: str
    base: Stored
    parts: tuple[Stored | Added | Stacked | None, ...]
    start: Added | None = None
    site: str = ""

    @property
    def key(self) -> str:
        """What random numbers and weights know it by."""
        return self.site or self.name

    @property
    def changed(self) -> bool:
        """Whether any model has something here."""
        return any(part is not None for part in self.parts)

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
    def width(self) -> int:
        """Numbers in a row of the first dimension."""
        return max(1, self.entries // max(1, self.base.shape[0])) if self.base.shape else 1

    @property
    def row_block(self) -> int:
        """Numbers in a block of whole rows; fixed, as a product of factors may round otherwise in another shape."""
        return self.width * max(1, 2**18 // self.width)


@dataclass(frozen=True)
class Alignment:
    """The targets, and what the output does not have of some model, in words."""

    targets: list[Target]
    notes: list[str] = field(default_factory=list)


def align(base: Checkpoint, models: Sequence[Checkpoint], allow_missing: Sequence[str] = ()) -> Alignment:
    """Pair the tensors of fine-tuned checkpoints with their base's.

    Raises:
        FusionError: other architectures, shapes or names; other integers; vocabularies that do not begin alike.
    """
    notes: list[str] = []
    for model in models:
        _same_architecture(base, model)
        notes += _extra(base, model, allow_missing)
    targets = [_target(stored, base, models, allow_missing, notes) for stored in base.tensors.values()]
    used = [name for name in allow_missing if not any(fnmatchcase(t, name) for m in (base, *models) for t in m.tensors)]
    if used:
        raise FusionError("matches no tensor", got=used[0], where="fuse.allow_missing", fix="correct the name")
    if any(_longer(t) for t in targets):
        notes.append(_vocabularies(base, models))
    return Alignment(targets, notes)


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
    rows = len(base.shape) == 2 and len(found.shape) == 2 and base.shape[1] == found.shape[1]
    if not rows or not _is_vocabulary(name) or found.shape[0] < base.shape[0]:
        what = f"the shapes differ: {model.name} has {list(found.shape)}, the base {list(base.shape)}"
        raise FusionError(what, where=name, fix="fuse fine-tuned versions of one base")


def _is_vocabulary(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and (
        parts[-2] in ("wte", "shared", "embed_in", "embed_out", "lm_head") or "embed" in parts[-2]
    )


def _longer(target: Target) -> bool:
    return any(isinstance(p, Stored) and p.shape != target.base.shape for p in target.parts)


def _vocabularies(base: Checkpoint, models: Sequence[Checkpoint]) -> str:
    """Refuse unless every tokenizer gives the base's tokens the base's ids, and equal ids to what was added."""
    ours = _tokens(base.folder)
    added: dict[str, int] = {}
    for model in models:
        theirs = _tokens(model.folder)
        changed = sorted(token for token, index in ours.items() if theirs.get(token) != index)
        if changed:
            what = f"{model.name} has more rows in its embedding, and its tokenizer another id for a token of the base"
            raise FusionError(what, got=changed[0], where=model.folder, fix="fuse models of one vocabulary")
        for token, index in theirs.items():
            if token not in ours and added.setdefault(token, index) != index:
                what = f"models added one token under different ids: {added[token]} and {index}"
                raise FusionError(what, got=token, where=model.folder, fix="give the token one id")
    shown = ", ".join(sorted(added)[:5]) + (", ..." if len(added) > 5 else "")
    tokens = f", which loses the added tokens {shown}" if added else ""
    return f"rows beyond the base's vocabulary are left out{tokens}"


def _tokens(folder: Path) -> dict[str, int]:
    """Token -> id, by the files of the tokenizer."""
    path = folder / "tokenizer.json"
    if not path.is_file() and (folder / "vocab.json").is_file():
        more = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
        return _numbers({**read_json(folder / "vocab.json"), **more}, folder / "vocab.json")
    if not path.is_file():
        fix = "put each model's tokenizer.json beside it, or cut the embeddings to one length"
        raise FusionError("embeddings of different lengths, and no tokenizer to compare", where=folder, fix=fix)
    told = read_json(path)
    model, listed = told.get("model"), told.get("added_tokens") or []
    vocabulary: Any = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its score
        vocabulary = {pair[0]: i for i, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    if not isinstance(vocabulary, dict) or not all(isinstance(t, dict) for t in listed):
        raise AdapterError("the tokenizer has no vocabulary", where=path, fix="save the tokenizer again")
    return _numbers({**vocabulary, **{str(t.get("content")): t.get("id") for t in listed}}, path)


def _numbers(vocabulary: Mapping[str, Any], path: Path) -> dict[str, int]:
    if not all(isinstance(index, int) for index in vocabulary.values()):
        raise AdapterError("an id that is not a number", where=path, fix="save the tokenizer again")
    return dict(vocabulary)
