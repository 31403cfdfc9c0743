"""Find the tensor of a checkpoint that a parameter is, and whether it is stored transposed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tangora.errors import FusionError
from tangora.storage.checkpoint import Checkpoint

__all__ = ["Names", "is_turned"]

_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_FIX = "give the base model that the adapters were made for"


class Names:
    """Maps an adapter's names for parameters to the base's.

    Args:
        base: the checkpoint.
        wanted: the adapter's names. They are tried unchanged, with a prefix of the base's names, and without a prefix
            of their own.

    Raises:
        FusionError: the base has no such parameters.
    """

    def __init__(self, base: Checkpoint, wanted: Sequence[str]) -> None:
        first = wanted[0] if wanted else ""
        longer = sorted({n.removesuffix(first) for n in base.tensors if n.endswith("." + first)})
        shorter = [first[: i + 1] for i, letter in enumerate(first) if letter == "."]
        for add, drop in [("", ""), *((add, "") for add in longer), *(("", drop) for drop in shorter)]:
            if all(add + name.removeprefix(drop) in base.tensors for name in wanted):
                self.add, self.drop = add, drop
                return
        missing = next((name for name in wanted if name not in base.tensors), first)
        missing = missing.removesuffix(".weight")
        raise FusionError("the base has no weight for a site", got=missing, where=base.folder, fix=_FIX)

    def __call__(self, name: str) -> str:
        """Return the base's name."""
        return self.add + name.removeprefix(self.drop)


def is_turned(
    shape: tuple[int, ...],
    stored: tuple[int, ...],
    site: str,
    embedding: bool,
    config: Mapping[str, Any] | None,
    base: Checkpoint,
) -> bool:
    """Return whether a weight is stored as the transpose of its update.

    Raises:
        FusionError: the shapes do not fit, transposed or not.
    """
    straight = shape == stored or (len(shape) == 2 and len(stored) > 2 and shape == (stored[0], math.prod(stored[1:])))
    turned = len(shape) == 2 and shape[::-1] == stored
    if not straight and not turned:
        what = f"the base's weight is {list(stored)}, the adapter's update {list(shape)}"
        raise FusionError(what, where=site, fix=_FIX)
    if straight and turned:  # square: only the kind of layer decides
        conv = base.config.get("model_type") in _CONV1D and not site.endswith(("lm_head", "score"))
        return embedding or bool((config or {}).get("fan_in_fan_out")) or conv
    return turned
