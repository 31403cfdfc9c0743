"""LoRA in a single .safetensors file, as trainers of image models write it, with one alpha a site.

<site>.lora_down.weight  A [r, in]
<site>.lora_up.weight    B [out, r]
<site>.alpha             a number: the scaling is alpha / r
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from tangora.adapters.adapter import Adapter
from tangora.adapters.contract import Survey
from tangora.adapters.metadata import Metadata
from tangora.adapters.survey import surveyed
from tangora.errors import AdapterError, FileError
from tangora.storage.checkpoint import Checkpoint
from tangora.storage.header import read_header
from tangora.updates.task_vector import LowRank

FILE = "lora.safetensors"
PARTS = ("lora_down.weight", "lora_up.weight", "alpha")


class SingleFile:
    """A file, or a folder with a file of that name."""

    name = "single-file"
    kind: Literal["lora", "full"] = "lora"

    def recognizes(self, path: Path) -> bool:
        """Whether the header names a part of a site, and nothing else."""
        file = place(path)
        if not file.is_file() or file.suffix != ".safetensors":
            return False
        try:
            names = read_header(file)
        except FileError:
            return False
        return bool(names) and all(name.endswith(PARTS) for name in names)

    def read(
        self, path: Path, about: Metadata | None, base: Checkpoint | None = None, *, lazily: bool = False
    ) -> Adapter:
        """Read the file whole."""
        file = place(path)
        tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
        sites = sorted({name.removesuffix("." + part) for name in tensors for part in PARTS if name.endswith(part)})
        if odd := tensors.keys() ^ {f"{site}.{part}" for site in sites for part in PARTS}:
            raise AdapterError("a part of a site is missing", got=min(odd), where=file, fix="copy the file again")
        if bad := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            raise AdapterError("a number is not finite", got=bad[0], where=file, fix="train the adapter again")
        updates = {}
        for site in sites:
            down, up, alpha = (tensors[f"{site}.{part}"] for part in PARTS)
            updates[site] = LowRank(up, down, float(alpha) / len(down))
        return Adapter(updates, about or Metadata())

    def survey(self, path: Path, about: Metadata | None) -> Survey:
        """Describe what can be read."""
        return surveyed(self.read(path, about), [place(path)])

    def write(self, adapter: Adapter, folder: Path) -> None:
        """Write factors and alphas."""
        tensors = {}
        for site, update in adapter.updates.items():
            factors = update.factors()
            if factors is None:
                raise AdapterError(
                    "only low-rank updates fit into this format", got=site, fix="save it as a PEFT adapter"
                )
            alpha = torch.tensor(factors.scaling * factors.rank)
            values = (factors.a.float().contiguous(), factors.b.float().contiguous(), alpha)
            tensors |= {f"{site}.{part}": value for part, value in zip(PARTS, values, strict=True)}
        save_file(tensors, folder / FILE)


def place(path: Path) -> Path:
    """The file that a path means."""
    return path / FILE if path.is_dir() else path


FORMAT = SingleFile()
