"""What an adapter from one file has besides its updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tangora.adapters.layouts.models import titles
from tangora.adapters.metadata import ABOUT

__all__ = ["SingleFile", "merged"]


@dataclass(frozen=True)
class SingleFile:
    """The layout of an adapter in one file.

    Attributes:
        format: the name of its format.
        models: keys of the models that have its names (`tangora.adapters.layouts.models`); none if it is unknown, and
            its sites have the names of the file.
        metadata: of the safetensors file.
        parents: adapter -> its metadata that the others do not share, if it was fused.
    """

    format: str
    models: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    parents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The model's name for people."""
        return titles(self.models)


def merged(files: Sequence[SingleFile], names: Sequence[str]) -> SingleFile:
    """Return the layout of a fusion: the first's format, the models that all may be of, and the metadata of all.

    Args:
        files: of the parents, which `tangora.adapters.layouts.common.in_one_layout` has checked.
        names: of the parents.
    """
    first = files[0]
    models = tuple(model for model in first.models if all(model in file.models for file in files))
    # Tangora's own record of a parent is never that of the fusion.
    keys = [key for key in first.metadata if not key.startswith(ABOUT)]
    shared = {key: first.metadata[key] for key in keys if len({file.metadata.get(key) for file in files}) == 1}
    own = {
        name: {key: value for key, value in file.metadata.items() if key not in shared}
        for name, file in zip(names, files, strict=True)
    }
    return SingleFile(first.format, models, shared, {name: held for name, held in own.items() if held})
