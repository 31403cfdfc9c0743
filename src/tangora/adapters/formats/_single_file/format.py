"""The formats of adapters in one safetensors file, as members of the registry."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from tangora.adapters.formats._single_file.header import metadata_for
from tangora.adapters.formats._single_file.reading import read_file
from tangora.adapters.formats._single_file.writing import Style, prepared, tensors_of
from tangora.adapters.formats.lora.reading import CONFIG, WEIGHTS
from tangora.adapters.kinds import KindName
from tangora.adapters.layouts.keys import sort_names
from tangora.adapters.layouts.lookup import family_of
from tangora.adapters.metadata import declared_kind
from tangora.adapters.survey import surveyed
from tangora.errors import AdapterError, FileError
from tangora.storage.header import read_header
from tangora.support.files import write_safetensors
from tangora.updates.task_vector import LowRank

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.contract import Survey
    from tangora.adapters.metadata import Metadata
    from tangora.storage.checkpoint import Checkpoint
    from tangora.updates.task_vector import Update

__all__ = ["SingleFileFormat"]


class SingleFileFormat:
    """Adapters in one safetensors file, or in a folder with no other one.

    Args:
        name: of the format, whose names `tangora.adapters.layouts` has.
        style: how it names factors.
        file: the name of the file in a folder.
        samples: sites that it has names for, with shapes (`tangora.testing.check_format`).
    """

    kind: Final[KindName] = "lora"

    def __init__(self, name: str, style: Style, file: str, samples: dict[str, tuple[int, int]]) -> None:
        self.name, self.style, self.file, self.samples = name, style, file, samples

    def recognizes(self, path: Path) -> bool:
        """Return whether a file has the format's names and parts of adapters; or the only one of a folder has."""
        with contextlib.suppress(FileError, OSError):
            file = _file_of(path)
            if file is None or (self.name == "peft" and (file.parent / CONFIG).is_file()):
                return False  # peft's own folder: its configuration states the scaling
            modules, is_adapter = sort_names(read_header(file))
            return is_adapter and family_of(modules) == self.name
        return False

    def read(
        self, path: Path, about: Metadata | None, base: Checkpoint | None = None, *, lazily: bool = False
    ) -> Adapter:
        """Read an adapter; its base is never needed. See `Format.read`."""
        return read_file(_found(path), self.name, about, lazily=lazily)

    def survey(self, path: Path, about: Metadata | None) -> Survey:
        """Describe an adapter, and its layout."""
        file = _found(path)
        adapter = read_file(file, self.name, about, lazily=True)
        layout = adapter.details.file
        assert layout is not None  # as `read_file` returns it
        return replace(surveyed(adapter, [file]), layout=layout.title)

    def prepare(self, adapter: Adapter) -> Adapter:
        """Return the adapter as it is written: at the format's modules, as factors. See `FileFormat.prepare`."""
        return prepared(adapter, self.name, self.style)

    def write(self, adapter: Adapter, folder: Path) -> None:
        """Write the file into a folder."""
        self.write_file(adapter, folder / self.file)

    def write_file(self, adapter: Adapter, path: Path) -> None:
        """Write the file, then its metadata, which contain digests of the tensors."""
        ready = self.prepare(adapter)
        tensors, file = tensors_of(ready, self.style), ready.details.file
        assert file is not None  # as `prepare` returns it
        factors = [f for update in ready.updates.values() if (f := update.factors()) is not None]
        write_safetensors(path, tensors, metadata_for(ready, file, factors, None))
        write_safetensors(path, tensors, metadata_for(ready, file, factors, path))

    def sample(self) -> dict[str, Update]:
        """Return updates that the format represents as they are."""
        generator = torch.Generator().manual_seed(0)
        return {
            site: LowRank(torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator))
            for site, (rows, columns) in self.samples.items()
        }


def _file_of(path: Path) -> Path | None:
    """Return the file that may hold an adapter; None if there is none, or several."""
    if path.is_file():
        return path if path.suffix == ".safetensors" else None
    if not path.is_dir() or declared_kind(path) not in (None, "lora") or (path / CONFIG).is_file():
        return None
    files = [one for one in path.iterdir() if one.suffix == ".safetensors"]
    return files[0] if len(files) == 1 and files[0].name != WEIGHTS else None


def _found(path: Path) -> Path:
    file = _file_of(path)
    if file is None:
        raise AdapterError("no file of an adapter, or several", where=path, fix="give the file itself")
    return file
