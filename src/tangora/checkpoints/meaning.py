"""Check that tensors mean what they are paired by: labels of classifiers, and output heads that are said to be tied."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations

from tangora.errors import FusionError
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import Stored

__all__ = ["check_ties", "compare_labels", "same_bytes"]

_BLOCK = 2**24
_KEY = "tie_word_embeddings"


def compare_labels(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Compare the labels of classifiers, and return a note for those that differ.

    Raises:
        FusionError: two have the same labels in another order, so that rows of unlike labels would be fused.
    """
    named = [(checkpoint, labels) for checkpoint in checkpoints if (labels := _labels(checkpoint))]
    notes = []
    for (one, ours), (other, theirs) in combinations(named, 2):
        if ours == theirs:
            continue
        if sorted(ours) == sorted(theirs):
            what = f"the labels of {other.name} are in another order than those of {one.name}"
            fix = "order the rows of the head, id2label and label2id alike"
            raise FusionError(what, got=theirs, where=other.folder, fix=fix)
        notes.append(f"{one.name} and {other.name} have other labels; the configuration is the base's")
    return notes


def _labels(checkpoint: Checkpoint) -> list[str]:
    """Return the labels by their ids; none if they have no names."""
    table = checkpoint.config.get("id2label")
    if not isinstance(table, Mapping) or not all(str(key).isdigit() for key in table):
        return []
    labels = [str(table[key]).casefold() for key in sorted(table, key=int)]
    return [] if labels == [f"label_{index}" for index in range(len(labels))] else labels


def check_ties(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that ties its output head to its embedding, and contains another head.

    Versions of transformers differ in what they load from it.

    Raises:
        FusionError: it is such a checkpoint.
    """
    for head, embedding in checkpoint.tied.items():
        one, other = checkpoint.tensors.get(head), checkpoint.tensors[embedding]
        if one is None or one is other or one.shape != other.shape or same_bytes(one, other):
            continue
        what = f"{checkpoint.name} ties its output head to {embedding}, but has another tensor for it"
        fix = f"set {_KEY} to false in its config.json, or remove the tensor"
        raise FusionError(what, got=head, where=checkpoint.folder, fix=fix)


def same_bytes(one: Stored, other: Stored) -> bool:
    """Return whether two stored tensors are equal, bit for bit."""
    if one.dtype != other.dtype or one.size != other.size:
        return False
    files = [os.open(stored.path, os.O_RDONLY) for stored in (one, other)]
    try:
        for at in range(0, one.size, _BLOCK):
            size = min(_BLOCK, one.size - at)
            parts = [os.pread(file, size, stored.start + at) for file, stored in zip(files, (one, other), strict=True)]
            if parts[0] != parts[1]:
                return False
    finally:
        for file in files:
            os.close(file)
    return True
