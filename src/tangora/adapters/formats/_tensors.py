"""A format of one file with one tensor per parameter, in float32; `delta`, `modules` and `routed` are such formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tangora.adapters.adapter import Adapter
from tangora.adapters.contract import Site, Survey
from tangora.adapters.kinds import KindName
from tangora.adapters.metadata import Metadata, declared_kind
from tangora.errors import AdapterError
from tangora.storage.header import FLOATS, Stored, read_header
from tangora.storage.tensors import finite, read_rows
from tangora.support.files import inside, read_safetensors, write_safetensors
from tangora.updates.task_vector import Dense, Update

if TYPE_CHECKING:
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["TensorsFormat"]


class TensorsFormat:
    """One file that maps parameters to tensors. Derive from it, and give the attributes values.

    Attributes:
        name: of the format.
        kind: of its adapters.
        file: the name of the file.
    """

    name: str
    kind: KindName
    file: str

    def recognizes(self, path: Path) -> bool:
        """Return whether ``tangora.json`` names this kind or, without one, whether the file exists."""
        kind = declared_kind(path)
        return kind == self.kind or (kind is None and (path / self.file).is_file())

    def read(
        self, path: Path, about: Metadata | None, base: Checkpoint | None = None, *, lazily: bool = False
    ) -> Adapter:
        """Read all tensors into memory; see `Format.read`."""
        tensors = read_safetensors(inside(path, self.file))
        updates = {name: Dense(finite(name, t, path / self.file)) for name, t in sorted(tensors.items())}
        return Adapter(updates, about or Metadata(kind=self.kind))

    def survey(self, path: Path, about: Metadata | None) -> Survey:
        """Describe an adapter; one parameter at a time is read, for its norm."""
        file = inside(path, self.file)
        tensors = read_header(file)
        sites = [_site(stored, file) for _, stored in sorted(tensors.items())]
        shapes: dict[str, Update] = {s.name: Dense(torch.empty(s.shape, device="meta")) for s in sites}
        return Survey(Adapter(shapes, about or Metadata(kind=self.kind)), tensors, sites)

    def write(self, adapter: Adapter, folder: Path) -> None:
        """Write every tensor in float32."""
        write_safetensors(folder / self.file, {name: u.dense().float().cpu() for name, u in adapter.updates.items()})


def _site(stored: Stored, file: Path) -> Site:
    if stored.dtype not in FLOATS:
        raise AdapterError("weights must be floating-point", got=stored.dtype, where=f"{stored.name} in {file}")
    tensor = read_rows(stored, 0, stored.shape[0] if stored.shape else 1).reshape(stored.shape)
    norm = float(finite(stored.name, tensor, file).double().norm())
    return Site(stored.name, "parameter", list(stored.shape), None, None, norm)
