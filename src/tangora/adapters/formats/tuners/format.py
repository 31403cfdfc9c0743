"""The format `tuners`: a PEFT directory of any kind other than LoRA; it is read, and never written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tangora.adapters.formats.tuners.files import config_of, kind_of
from tangora.adapters.formats.tuners.reading import base_of, read_tuner
from tangora.adapters.formats.tuners.survey import survey
from tangora.adapters.metadata import declared_kind
from tangora.errors import AdapterError, ArgumentError, FileError
from tangora.storage.architecture import stored_folder
from tangora.storage.checkpoint import open_base

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.adapters.contract import Survey
    from tangora.adapters.metadata import Metadata
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["FORMAT"]


class _TunersFormat:
    """A PEFT directory of LoHa, IA³, VeRA, OFT, or any other kind that changes weights."""

    name: Final = "tuners"
    kind: Final = "lora"
    read_only: Final = True
    in_peft: Final = True

    def recognizes(self, path: Path) -> bool:
        """Return whether the configuration is peft's, of another kind than LoRA."""
        return declared_kind(path) in (None, self.kind) and kind_of(path) not in (None, "LORA")

    def read(
        self, path: Path, about: Metadata | None, base: Checkpoint | None = None, *, lazily: bool = False
    ) -> Adapter:
        """Read updates that are computed whenever they are needed, with or without ``lazily``; see `Format.read`.

        Without a base, the one that the configuration names is used, if it is a folder, or in the Hub's cache.
        """
        if base is None:
            named = base_of(config_of(path)[0]).base
            with contextlib.suppress(FileError, ArgumentError):  # then the adapter is refused for the lack of its base
                base = open_base(stored_folder(named.model, named.revision))
        return read_tuner(path, about, base)

    def needs_base(self, path: Path) -> bool:
        """Return True: the layers that compute an update are built on those of the base."""
        return True

    def survey(self, path: Path, about: Metadata | None) -> Survey:
        """Describe an adapter without its base; see `Format.survey`."""
        return survey(path, about)

    def write(self, adapter: Adapter, folder: Path) -> None:
        """Refuse: an update is written as the plain LoRA that it is, or is cut to."""
        raise AdapterError("the format tuners is only read", where=folder, fix="leave format= out, which writes LoRA")


FORMAT = _TunersFormat()
