"""The exceptions Tangora raises on purpose, all of them children of one.

    TangoraError
    ├── ArgumentError      an argument or option is invalid: pass another value
    │   └── RecipeError    a recipe is invalid: correct the key that the message names
    ├── PluginError        a method, family, mode, ... is unknown or broken: correct its name, or update its package
    ├── MissingExtraError  packages that this needs are not installed: run the pip command in the message
    ├── FileError          a file or folder is missing, unreadable, truncated or leads outside: copy it again
    │   ├── AdapterError   an adapter is not one that can be read or written exactly: give another, or its base
    │   └── DataError      a data set is not as the recipe describes it: correct the data or the recipe
    ├── ModelError         a base model cannot be loaded, adapted or trained as asked: choose another, or other targets
    ├── FusionError        adapters or coefficients do not go together: leave one out, or choose another method
    └── OutputError        nothing can be written there: free the place or the disk, or choose another

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

from collections.abc import Sequence
from typing import TypeVar

__all__ = [
    "AdapterError",
    "ArgumentError",
    "DataError",
    "FileError",
    "FusionError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "PluginError",
    "RecipeError",
    "TangoraError",
]

_ABSENT = object()
_E = TypeVar("_E", bound="TangoraError")
_MOST = 500  # characters of an offending value in the message; `got` has all of them
_LONGEST = 4096  # of the rule, and of the place: as long as a path
_LISTED = 20  # faults of one error in its message; `faults` has all of them


class TangoraError(Exception):
    """Something the caller can put right.

    Args:
        what: the rule that was broken, without a full stop.
        got: the offending value, shown by ``repr``; leave out when there is none.
        where: a file, a key path such as ``modes.lora.training.steps``, a site or a tensor name.
        fix: what to do about it, one sentence.

    All four are attributes of the exception too; ``got`` is None if there is none. An error that stands for several,
    such as all those of a recipe, has them in ``faults``, which is empty otherwise.

    >>> try:
    ...     raise FileError("file not found", where="adapters/sst2/adapter_config.json", fix="check the path")
    ... except TangoraError as error:
    ...     print(error.where, error.got)
    adapters/sst2/adapter_config.json None
    """

    faults: tuple[TangoraError, ...] = ()

    def __init__(self, what: str, *, got: object = _ABSENT, where: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        self.got = None if got is _ABSENT else got
        message = _cut(what, _LONGEST)
        if got is not _ABSENT:
            message += f", got {_cut(repr(got))}"
        if where is not None:
            message += f" at {_cut(str(where), _LONGEST)}"
        if fix:
            message += f". {fix[0].upper()}{fix[1:]}"
        super().__init__(message)

    @classmethod
    def together(cls: type[_E], faults: Sequence[_E], where: object) -> _E:
        """Return one error that stands for all of ``faults``: the fault itself if there is one.

        >>> str(RecipeError.together([RecipeError("no name"), RecipeError("no task")], "recipe.yaml"))
        '2 faults at recipe.yaml: (1) no name; (2) no task'
        """
        if len(faults) == 1:
            return faults[0]
        made = cls(f"{len(faults)} faults", where=where)
        made.faults = tuple(faults)
        listed = [f"({number}) {fault}" for number, fault in enumerate(faults[:_LISTED], 1)]
        more = [f"and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
        made.args = (f"{made}: {'; '.join([*listed, *more])}",)
        return made


def _cut(text: str, most: int = _MOST) -> str:
    return text if len(text) <= most else text[:most] + " …"


class ArgumentError(TangoraError):
    """An argument or an option is invalid. Pass another value."""


class RecipeError(ArgumentError):
    """A recipe is invalid. Correct the key that ``where`` names."""


class PluginError(TangoraError):
    """A method, family, mode, search, ... is unknown, or the package that brings it is broken."""


class MissingExtraError(TangoraError):
    """Packages of an extra, such as ``tangora[report]``, are not installed. Run the pip command in the message."""


class FileError(TangoraError):
    """A file or folder is missing, unreadable, truncated, of a newer format, or leads outside. Copy it again."""


class DataError(FileError):
    """A data set is not as the recipe describes it. Correct the data, or the recipe."""


class ModelError(TangoraError):
    """A base model cannot be loaded, adapted or trained as asked. Choose another one, or other targets or settings."""


class AdapterError(FileError):
    """An adapter, on disk or in memory, cannot be read or written exactly. Give another one, or its base."""


class FusionError(TangoraError):
    """Adapters or coefficients do not go together. Leave one out, or choose another method or space."""


class OutputError(TangoraError):
    """Nothing can be written there, or it would overwrite something. Free the place, or choose another."""
