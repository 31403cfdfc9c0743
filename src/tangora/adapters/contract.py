"""The contract of a format, which reads and writes the files of an adapter.

A format is one object, found by its name: a built-in one by file (`tangora.adapters.formats`), another package's by an
entry point of the group ``tangora.formats``. `tangora.load` uses the format that recognizes a path. An adapter is
written in the format of its kind, or in the one passed to `Adapter.save`. `tangora.testing.check_format` checks the
promises below.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from tangora.adapters.kinds import KindName
from tangora.adapters.layouts.content import error_of_file
from tangora.errors import AdapterError, FileError
from tangora.storage.recognition import ambiguous, contents_of, missing, pickled, refused_pickle, weights_of
from tangora.support.files import inside, read_json
from tangora.support.seams import FORMATS

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.metadata import Metadata
    from tangora.storage.checkpoint import Checkpoint
    from tangora.storage.header import Stored

__all__ = ["FileFormat", "Format", "Site", "Survey", "format_of", "holds_adapter", "needs_base", "recognized_by"]


@runtime_checkable
class Format(Protocol):
    """The files of adapters of one kind.

    Attributes:
        name: the name under which it is registered.
        kind: of the adapters: ``lora`` (low-rank updates of layers), ``full`` (changes of whole parameters),
            ``modules`` (parameters of modules that a mode adds) or ``routed`` (such modules with a router).

    A format promises:

    1. `recognizes` returns True for what `write` has written, False for every other format's files, and never raises.
    2. `read` returns an adapter with the fingerprint of the one that `write` got, in float32, lazily or not.
    3. `read` refuses what it cannot read exactly, with an error that says what is wrong; it never skips a tensor.

    A format may define these too:

    - ``read_only = True``: `write` refuses every adapter, and promises 1 and 2 are of files that others write.
    - ``in_peft = True``: stock peft loads the files.
    - ``needs_base(path)``: whether the adapter in a folder is only read with the weights of its base.
    """

    name: str
    kind: KindName

    def recognizes(self, path: Path) -> bool:
        """Return whether a folder or a file is of this format, from names and headers; no weight is read."""
        ...

    def read(
        self, path: Path, about: Metadata | None, base: Checkpoint | None = None, *, lazily: bool = False
    ) -> Adapter:
        """Read an adapter.

        Args:
            path: a folder or file that the format recognizes.
            about: the content of ``tangora.json`` beside the files; None if there is none.
            base: the adapter's base model, if the updates depend on the base's weights.
            lazily: large tensors may stay in their files, which do not change, until they are needed.

        Raises:
            FileError: a file is missing, truncated or corrupt.
            AdapterError: the adapter is no change of the base's weights, or cannot be read without the base.
        """
        ...

    def survey(self, path: Path, about: Metadata | None) -> Survey:
        """Describe an adapter for ``tangora inspect``, even if it cannot be read without its base.

        `tangora.adapters.survey.surveyed` describes any adapter that `read` returns.
        """
        ...

    def write(self, adapter: Adapter, folder: Path) -> None:
        """Write an adapter's weights into a folder; the caller writes ``tangora.json``, the card and ``heads/``.

        Raises:
            AdapterError: the format cannot represent the adapter.
        """
        ...


@runtime_checkable
class FileFormat(Format, Protocol):
    """A format whose adapter may be one file, which other programs read by itself: provenance is in its metadata.

    `Format.write` writes the file into a folder. A further promise:

    4. `write_file` writes what `prepare` returns, and `prepare` of that changes nothing.

    A format that has names of certain models only, or no place for scalings, defines ``sample() -> dict[str, Update]``:
    updates that it represents as they are, for `tangora.testing.check_format`.
    """

    def prepare(self, adapter: Adapter) -> Adapter:
        """Return the adapter at the modules of the format, as factors with scalings that it can hold.

        Raises:
            AdapterError: the format has no names for its modules, or cannot represent it.
        """
        ...

    def write_file(self, adapter: Adapter, path: Path) -> None:
        """Write an adapter into a file, with its provenance in the file's metadata; the caller publishes the file.

        Raises:
            AdapterError: the format cannot represent the adapter.
        """
        ...


@dataclass(frozen=True)
class Site:
    """A description of one update.

    Attributes:
        name: the layer's path, or the parameter's.
        kind: ``linear``, ``embedding``, ``convolution``, ``bias``, ``expert`` or ``parameter``.
        shape: of the weight; empty if only the base has it.
        rank: of a low-rank update, else None.
        scaling: of its factors, else None.
        norm: of the update (Frobenius); None if it depends on the base.
    """

    name: str
    kind: str
    shape: list[int]
    rank: int | None
    scaling: float | None
    norm: float | None


@dataclass(frozen=True)
class Survey:
    """A description of an adapter's files, without their numbers.

    Attributes:
        adapter: the adapter with tensors that have shapes only.
        tensors: the tensors of its files.
        sites: its updates.
        whole: parameters that are saved whole.
        start: whether φ₀ is in a file of its own, so that the adapter may not have started at the base.
        needs_base: why its updates depend on the base's weights; None if they do not.
        title: what the adapter is, such as ``a LoHa adapter``, if that is more exact than its kind.
        layout: the model whose modules the file names, for people; None if the format has no layouts.
    """

    adapter: Adapter
    tensors: Mapping[str, Stored]
    sites: list[Site] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    start: bool = False
    needs_base: str | None = None
    title: str | None = None
    layout: str | None = None


def recognized_by(path: Path) -> list[str]:
    """Return the names of the formats that recognize a folder or file."""
    return [name for name, format_ in FORMATS.all().items() if format_.recognizes(path)]


def format_of(path: Path) -> Format:
    """Return the format of an adapter's folder or file.

    Raises:
        AdapterError: no format recognizes it, or several do.
    """
    names = recognized_by(path)
    if len(names) == 1:
        return cast(Format, FORMATS.get(names[0]))
    if names:
        fix = "keep the files of one format only, or uninstall the package of another"
        raise AdapterError("several formats recognize this", got=", ".join(names), where=path, fix=fix)
    _refuse_by_content(path)
    fix = "give the folder of an adapter as peft saves it; or merge it into its base, and give that"
    what = f"no format recognizes this as an adapter (formats: {', '.join(FORMATS)})"
    raise AdapterError(what, got=_content_of(path), where=path, fix=fix)


def needs_base(path: Path) -> bool:
    """Return whether the adapter in a folder is only read with the weights of its base.

    Raises:
        AdapterError: as `format_of`.
    """
    asked = getattr(format_of(path), "needs_base", None)
    return bool(asked is not None and asked(path))


def _refuse_by_content(path: Path) -> None:
    """Raise the error that describes a path without an adapter better than by what it is not."""
    if path.is_file():
        if contents_of(path.parent) != "nothing":
            what, fix = "a file where the folder of an adapter is needed", f"give its folder: {path.parent}"
            raise AdapterError(what, got=path.name, where=path, fix=fix)
        if (problem := error_of_file(path)) is not None:
            raise problem
        return
    held = contents_of(path)
    if held == "checkpoint":
        if weights_of(path) is None:
            raise refused_pickle(path / pickled(path)[0], AdapterError)
        fix = "give adapters, and merge checkpoints with tangora merge"
        raise AdapterError("a full checkpoint where an adapter is needed", where=path, fix=fix)
    if held == "nothing" and (described := missing(path, AdapterError)) is not None:
        raise described


def _content_of(path: Path) -> str:
    if not path.is_dir():
        return path.suffix or "a file"
    with contextlib.suppress(FileError, KeyError):
        return f"peft_type {read_json(inside(path, 'adapter_config.json'))['peft_type']}"
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "an empty folder"


def holds_adapter(path: Path) -> bool:
    """Return whether a path holds an adapter, and not a checkpoint; other packages' formats are tried last.

    Raises:
        FileError: it holds both.
    """
    held = contents_of(path)
    if held == "both":
        raise ambiguous(path)
    return held == "adapter" or (held == "nothing" and path.exists() and bool(recognized_by(path)))
