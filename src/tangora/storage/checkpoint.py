"""A checkpoint's folder: its configuration and the location of every tensor. Only headers and a few samples are read.

A folder holds ``config.json`` and either ``model.safetensors`` or ``model.safetensors.index.json`` with the shards that
it names. Of both, transformers loads the first, and so does this module (`tangora.storage.recognition`). No file
outside the folder is opened: an index may name files only, and a link may lead out of it in one case, the Hub's cache,
where ``snapshots/<revision>/`` links to ``blobs/`` beside it. Pickles are refused.

Tied weights: if the configuration ties the output head to the input embedding, the head is that embedding, stored or
not. `Checkpoint.find` then returns the embedding, so that a tied and an untied checkpoint can be compared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tangora.errors import ArgumentError, FileError
from tangora.storage.header import Stored, read_header
from tangora.storage.hub import located
from tangora.storage.quantization import quantization_of, refused_quantized
from tangora.storage.recognition import (
    CONFIG,
    INDEX,
    SINGLE,
    ambiguous,
    contents_of,
    missing,
    pickled,
    refused_pickle,
    weights_of,
)
from tangora.support.files import inside, read_json
from tangora.support.names import hub_name, names_of

__all__ = ["CONFIG", "INDEX", "SINGLE", "Checkpoint", "open_base", "open_checkpoint", "refuse_quantized"]

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "cls.predictions.decoder.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "shared.weight")
_SAMPLE = 4096


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint on disk.

    Args:
        folder: where it is.
        config: ``config.json``.
        tensors: name -> where its bytes are, in the order of the files.
        label: a name that tells it apart from other checkpoints; the folder's if empty.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    label: str = field(default="", kw_only=True)

    @property
    def name(self) -> str:
        """The label, or else the folder's name; in the Hub's cache, the model's."""
        return self.label or names_of([self.folder])[0]

    @property
    def model(self) -> str | None:
        """The model's name on the Hub or where it was loaded from, as far as folder and configuration contain it.

        In the Hub's cache it is in the path. The configuration often still has the name of the model that this one
        was tuned from.
        """
        stated = self.config.get("_name_or_path")
        return hub_name(os.path.abspath(self.folder)) or (stated if isinstance(stated, str) and stated else None)

    @cached_property
    def quantized(self) -> str | None:
        """How the weights are quantized; None if they are in full precision."""
        return quantization_of(self.config, self.tensors)

    @property
    def files(self) -> list[Path]:
        """The files that hold tensors."""
        return list(dict.fromkeys(entry.path for entry in self.tensors.values()))

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Output head -> the input embedding that it is."""
        inputs = [n for n in self.tensors if n.endswith(_EMBEDDINGS) and ".vision" not in n]
        inputs = [n for n in inputs if n == "shared.weight"] or inputs  # T5's; the others are copies of it
        ties = self._ties
        if ties is False or len(inputs) != 1:
            return {}
        heads = [n for n in self.tensors if n.endswith(_HEADS)]
        if ties is None and heads:  # it stores a head, and the configuration does not mention tying
            return {}
        return dict.fromkeys([*heads, "lm_head.weight", "embed_out.weight"], inputs[0])

    @property
    def _ties(self) -> bool | None:
        nested = self.config.get("text_config")
        value = self.config.get("tie_word_embeddings")
        if value is None and isinstance(nested, Mapping):
            value = nested.get("tie_word_embeddings")
        return value if isinstance(value, bool) else None

    def find(self, name: str) -> Stored | None:
        """Return the tensor that the model uses under this name; None if there is none."""
        return self.tensors.get(self.tied.get(name, name))

    @cached_property
    def fingerprint(self) -> str:
        """Sha-256 (hex) of every tensor's name, dtype, shape, and samples of its bytes; the same for any sharding.

        The samples are 4 KiB at the beginning, the middle and the end: a checkpoint that was trained further differs
        there. Hashing every byte would take longer than the fusion.
        """
        total = hashlib.sha256()
        handles = {path: os.open(path, os.O_RDONLY) for path in self.files}
        try:
            for name in sorted(self.tensors):
                stored = self.tensors[name]
                total.update(f"{name}\x1f{stored.dtype}\x1f{stored.shape}\x1f".encode())
                for at in _samples(stored.size):
                    total.update(os.pread(handles[stored.path], min(_SAMPLE, stored.size - at), stored.start + at))
        finally:
            for handle in handles.values():
                os.close(handle)
        return total.hexdigest()


def _samples(size: int) -> Iterator[int]:
    if size <= 3 * _SAMPLE:
        yield from range(0, size, _SAMPLE)
    else:
        yield from (0, size // 2, size - _SAMPLE)


def open_base(base: str | os.PathLike[str] | Checkpoint | None) -> Checkpoint | None:
    """Return a base's checkpoint, opened if it is given by its folder; None for None.

    Raises:
        ArgumentError, FileError: as `open_checkpoint`, or it is quantized.
    """
    opened = open_checkpoint(base) if isinstance(base, str | os.PathLike) else base
    if opened is not None:
        refuse_quantized(opened)
    return opened


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint with quantized weights: nothing can be added to them, or subtracted from them, exactly.

    Raises:
        FileError: the message contains how it is quantized, and what to give instead.
    """
    if checkpoint.quantized is not None:
        raise refused_quantized(checkpoint.quantized, checkpoint.folder)


def open_checkpoint(folder: str | os.PathLike[str], label: str = "") -> Checkpoint:
    """Open the checkpoint in a folder, or of a name on the Hub; ``label`` becomes its name.

    Raises:
        ArgumentError: the folder holds an adapter.
        FileError: it is no checkpoint, is a pickle, is damaged, names files outside itself, or holds an adapter too.
    """
    folder = located(folder, "checkpoint")
    if not folder.is_dir():
        fix = "give the folder that holds config.json, or org/name of the Hub"
        raise FileError("no such folder", where=folder, fix=fix)
    content = contents_of(folder)
    if content == "adapter":
        fix = "give the base model as --base BASE, and the adapters alone before it"
        raise ArgumentError("an adapter where a full checkpoint is needed", where=folder, fix=fix)
    if content != "checkpoint":
        raise ambiguous(folder) if content == "both" else missing(folder) or _nothing(folder)
    config = read_json(inside(folder, CONFIG))
    tensors: dict[str, Stored] = {}
    for shard, expected in _shards(folder):
        held = read_header(inside(folder, shard))
        if expected is not None and (odd := sorted(expected ^ held.keys())):
            what = "index and shard disagree on a tensor"
            raise FileError(what, got=odd[0], where=folder / shard, fix="copy the checkpoint again")
        if twice := tensors.keys() & held.keys():
            raise FileError("a tensor in two shards", got=min(twice), where=folder / shard, fix="save it again")
        tensors |= held
    if not tensors:
        raise FileError("the checkpoint holds no tensors", where=folder, fix="check the path")
    return Checkpoint(folder, config, tensors, label=label)


def _nothing(folder: Path) -> FileError:
    return FileError("no checkpoint here", where=folder, fix=f"give a folder with {SINGLE} or {INDEX}")


def _shards(folder: Path) -> list[tuple[str, set[str] | None]]:
    """Return the files of a checkpoint, and the tensors that the index expects in each."""
    weights = weights_of(folder)
    if weights is None:
        raise refused_pickle(folder / pickled(folder)[0])
    if not weights.is_index:
        return [(weights.name, None)]
    where = folder / weights.name
    table = read_json(inside(folder, weights.name)).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise FileError("no weight_map in the index", where=where, fix="save the checkpoint again")
    names: dict[str, set[str]] = {}
    for tensor, shard in table.items():
        names.setdefault(shard, set()).add(tensor)
    return [(shard, names[shard]) for shard in sorted(names)]
