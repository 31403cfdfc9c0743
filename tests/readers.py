"""The readers of files that others wrote, as functions of bytes, for tests/test_fuzz.py and tests/fuzz_atheris.py."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

import tangora
import toys
from tangora.adapters.adapter import load
from tangora.checkpoints.beside_adapters import beside_adapters
from tangora.checkpoints.tokens import files_of, tokens_of
from tangora.config.recipe import load_recipe
from tangora.storage.checkpoint import open_checkpoint
from tangora.tasks.images import rgb
from tangora.tasks.sources import _npz as _npz_table
from tangora.tasks.sources import _open

ADAPTER = ["adapter_config.json", "adapter_model.safetensors", "tangora.json"]


@dataclass(frozen=True)
class Reader:
    """A valid input, and what reads it: an answer, or a `TangoraError`."""

    seed: Callable[[], bytes]
    read: Callable[[bytes], object]


@cache
def adapter() -> Mapping[str, bytes]:
    """An adapter's three files."""
    with tempfile.TemporaryDirectory() as folder:
        toys.lora(1).save(Path(folder) / "x")
        return {name: (Path(folder) / "x" / name).read_bytes() for name in ADAPTER}


def in_folder(files: Mapping[str, bytes], read: Callable[[Path], object]) -> object:
    """What a reader makes of a folder of these files."""
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        return read(Path(name))


def load_and_save(folder: Path) -> object:
    """Read an adapter, and write it again with its card."""
    read = load(folder)
    read.save(folder / "again")
    return read


def _of_adapter(name: str) -> Reader:
    return Reader(lambda: adapter()[name], lambda data: in_folder({**adapter(), name: data}, load_and_save))


def _of_tokens(name: str, seed: bytes) -> Reader:
    def read(folder: Path) -> object:
        beside_adapters([folder])
        return tokens_of(files_of(folder))

    return Reader(lambda: seed, lambda data: in_folder({name: data}, read))


def _of_checkpoint(name: str, seed: bytes) -> Reader:
    files = {"config.json": b"{}", "model.safetensors": save({"w": torch.ones(2)})}
    return Reader(lambda: seed, lambda data: in_folder({**files, name: data}, open_checkpoint))


def _npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, image=np.zeros((2, 4, 4), np.uint8), label=np.array([0, 1]), text=np.array(["a", "b"]))
    return stream.getvalue()


def _picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(189, dtype=np.uint8).reshape(9, 7, 3)).save(stream, kind)
    return stream.getvalue()


def _recipe() -> bytes:
    return (Path(tangora.__file__).parent / "recipes" / "quickstart.yaml").read_bytes()


def _rows(folder: Path) -> object:
    return _open(_npz_table, folder / "a.npz")


PIECES = b"\n\x0b\n\x04\xe2\x96\x81a\x15\x00\x00\x00\x00\n\x05\n\x01b\x18\x01"  # two pieces, as protobuf
TOKENIZER = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "c"}]}
READERS: Mapping[str, Reader] = {
    **{name: _of_adapter(name) for name in ADAPTER},
    "recipe.yaml": Reader(
        _recipe, lambda data: in_folder({"r.yaml": data}, lambda folder: load_recipe(folder / "r.yaml"))
    ),
    "tokenizer.json": _of_tokens("tokenizer.json", json.dumps(TOKENIZER).encode()),
    "tokenizer.model": _of_tokens("tokenizer.model", PIECES),
    "tekken.json": _of_tokens("tekken.json", b'{"vocab": [{"rank": 0, "token_bytes": "YQ=="}], "config": {}}'),
    "model.safetensors": _of_checkpoint("model.safetensors", save({"w": torch.ones(2)})),
    "index.json": _of_checkpoint("model.safetensors.index.json", b'{"weight_map": {"w": "model.safetensors"}}'),
    "arrays.npz": Reader(_npz, lambda data: in_folder({"a.npz": data}, _rows)),
    **{
        f"image.{kind.lower()}": Reader(lambda kind=kind: _picture(kind), lambda data: rgb(data, "row 0"))
        for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
    },
}
