"""The exceptions Tangora raises on purpose, all of them children of one.

    TangoraError
    ├── RecipeError        a recipe, an option or an argument that cannot be right
    ├── DataError          a data set: missing file or split, unknown column, label out of range
    ├── ModelError         a base model: not found, target module that matches nothing, unsupported layer
    ├── AdapterError       an adapter on disk or in memory: corrupt, not finite, a kind that is not s·BA
    ├── FusionError        a set of adapters, or coefficients, that cannot be fused exactly
    └── OutputError        writing: the output exists, the disk is full, the folder is not writable

Every message says what is wrong, what was got, where, and how to fix it::

    >>> raise RecipeError("density must be in (0, 1]", got=20, where="fuse.density",
    ...                   fix="densities are fractions")
    Traceback (most recent call last):
        ...
    tangora.errors.RecipeError: density must be in (0, 1], got 20 at fuse.density. Densities are fractions

Only these reach a user of the command line as one line and exit code 2; any other exception is a bug,
shown with its traceback.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "DataError",
    "FusionError",
    "ModelError",
    "OutputError",
    "RecipeError",
    "TangoraError",
]

_ABSENT = object()


class TangoraError(Exception):
    """Something the caller can put right.

    Args:
        what: the rule that was broken, without a full stop.
        got: the offending value, shown by ``repr``; leave out when there is none.
        where: a file, a key path such as ``modes.lora.training.steps``, a site or a tensor name.
        fix: what to do about it, one sentence.
    """

    def __init__(self, what: str, *, got: object = _ABSENT, where: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        message = what
        if got is not _ABSENT:
            message += f", got {got!r}"
        if where is not None:
            message += f" at {where}"
        if fix:
            message += f". {fix[0].upper()}{fix[1:]}"
        super().__init__(message)


class RecipeError(TangoraError):
    """A recipe, an option or an argument that cannot be right."""


class DataError(TangoraError):
    """A data set that cannot be read as the recipe describes it."""


class ModelError(TangoraError):
    """A base model that cannot be loaded or adapted as asked."""


class AdapterError(TangoraError):
    """An adapter that is corrupt, not finite, or of a kind that is not a plain low-rank update."""


class FusionError(TangoraError):
    """Adapters, or coefficients, that cannot be fused exactly."""


class OutputError(TangoraError):
    """An output that cannot be written, or that would overwrite something."""
