"""The format `lora`: a PEFT LoRA directory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tangora.adapters.adapter import Adapter, LoraDetails
from tangora.adapters.formats.lora.base_dependent import adapted_digest
from tangora.adapters.formats.lora.reading import CONFIG, PICKLE, WEIGHTS, read_peft
from tangora.adapters.formats.lora.survey import needs_base, survey
from tangora.adapters.formats.lora.writing import content_of, write_config, write_tensors
from tangora.adapters.metadata import BaseInfo, Metadata, declared_kind
from tangora.adapters.start import INITIAL, can_redraw, initial_tensors, read_initial
from tangora.errors import AdapterError, ArgumentError, FileError
from tangora.storage.architecture import stored_folder
from tangora.storage.checkpoint import open_base
from tangora.support.files import inside, read_json, write_json, write_safetensors

if TYPE_CHECKING:
    from tangora.adapters.contract import Survey
    from tangora.storage.checkpoint import Checkpoint

__all__ = ["FORMAT"]


MLX = "adapters.safetensors"
"""The file of mlx-lm, whose configuration has the name of peft's."""


class _LoraFormat:
    """A PEFT LoRA directory."""

    name: Final = "lora"
    kind: Final = "lora"

    def recognizes(self, path: Path) -> bool:
        """Return whether one of peft's files exists, and its configuration, if it can be read, is of a LoRA."""
        if declared_kind(path) not in (None, self.kind):
            return False
        if not any((path / name).is_file() for name in (CONFIG, WEIGHTS, PICKLE)):
            return False
        if (path / MLX).is_file() and not (path / WEIGHTS).is_file():
            return False
        with contextlib.suppress(FileError):  # a damaged configuration is refused when it is read
            return bool(read_json(inside(path, CONFIG)).get("peft_type", "LORA") == "LORA")
        return True

    def read(
        self, path: Path, about: Metadata | None, base: Checkpoint | None = None, *, lazily: bool = False
    ) -> Adapter:
        """Read updates, φ₀ and the parameters saved whole; see `Format.read`."""
        needed = about.base if about is not None and about.base.adapted is not None else None
        if needed is not None and base is None:
            base = _found(needed)
        content = read_peft(path, base, lazily=lazily)
        if needed is not None and adapted_digest(content.updates) != needed.adapted:
            what = "the base has other weights than those with which the adapter was trained"
            fix = "give the base of the training, with --base or base="
            raise AdapterError(what, got=None if base is None else str(base.folder), where=path, fix=fix)
        if about is None:
            name, revision = content.config.get("base_model_name_or_path"), content.config.get("revision")
            about = Metadata(base=BaseInfo(model=name or None, revision=revision))
        details = LoraDetails(content.config, None, content.embeddings, content.kernels)
        adapter = Adapter(content.updates, about, details, content.whole)
        return adapter.with_details(initial=read_initial(adapter, path))

    def needs_base(self, path: Path) -> bool:
        """Return whether the updates follow from the base's weights: DoRA, PiSSA, OLoRA."""
        with contextlib.suppress(FileError):  # a damaged configuration is refused when it is read
            return needs_base(read_json(inside(path, CONFIG)), path) is not None
        return False

    def survey(self, path: Path, about: Metadata | None) -> Survey:
        """Describe an adapter that may need its base; see `Format.survey`."""
        return survey(path, about)

    def write(self, adapter: Adapter, folder: Path) -> None:
        """Write configuration and factors; φ₀ too if it cannot be drawn again from its seed."""
        content = content_of(adapter)
        write_json(folder / CONFIG, write_config(content, adapter.config, adapter.metadata.base.model))
        write_safetensors(folder / WEIGHTS, write_tensors(content, adapter.details.dtype))
        if adapter.initial is not None and not can_redraw(adapter):
            write_safetensors(folder / INITIAL, initial_tensors(adapter.initial))


def _found(base: BaseInfo) -> Checkpoint | None:
    """Return the recorded base of an adapter whose updates depend on it; None if its files are not where they were."""
    folder = stored_folder(base.model, base.revision)
    with contextlib.suppress(FileError, ArgumentError):  # then the adapter is refused for the lack of its base
        return open_base(folder)
    return None


FORMAT = _LoraFormat()
