"""Determine from the names of a folder's files what it holds; every command decides by this.

An adapter is recognized by its files, a checkpoint by weights under the names that transformers loads. A
``config.json`` alone decides nothing: trainers and hosts put the base's beside an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tangora.errors import FileError
from tangora.support.files import read_json

__all__ = [
    *("CONFIG", "INDEX", "SINGLE", "Contents", "Weights", "ambiguous", "contents_among", "contents_of", "inner"),
    *("missing", "pickled", "refused_pickle", "weights_of"),
]

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = (
    *("adapter_model.safetensors", "adapter_model.bin"),
    *("delta.safetensors", "modules.safetensors", "routed.safetensors"),
)
_PICKLES = re.compile(r"(pytorch_model|model|consolidated)[^/]*\.(bin|bin\.index\.json|pt|pth|ckpt)")
_DISTRIBUTED = re.compile(r"global_step\d+|zero_to_fp32\.py|pytorch_model_fsdp_\d+|.*\.distcp")
_OTHERS = re.compile(r".*\.(safetensors|gguf|h5|msgpack|onnx|ot)|.*\.ckpt(\.index)?")
_SAVE_AGAIN = "load it where you trust it, and save it again with safe_serialization=True"
_DEEPEST, _MOST = 4, 1000  # the Hub's cache has adapters on the fourth level; a folder of others may be large

Contents = Literal["adapter", "checkpoint", "both", "nothing"]


@dataclass(frozen=True)
class Weights:
    """The file that names a checkpoint's weights, and whether it is an index of shards."""

    name: str
    is_index: bool


def contents_of(path: Path) -> Contents:
    """Return what a folder holds by itself, its subfolders left aside.

    A folder with ``adapter_config.json`` and the weights of a whole model, but none of an adapter, is a checkpoint.
    """
    return _contents(lambda name: (path / name).is_file(), weights_of(path), lambda: bool(pickled(path)))


def contents_among(names: Collection[str]) -> Contents:
    """Return what a folder with files of these names holds: as `contents_of`, for a folder that is not here yet.

    >>> contents_among(["adapter_config.json", "adapter_model.safetensors", "config.json"])
    'adapter'
    """
    weights = next((Weights(name, name == INDEX) for name in (SINGLE, INDEX) if name in names), None)
    return _contents(names.__contains__, weights, lambda: any(map(_PICKLES.fullmatch, names)))


def _contents(holds: Callable[[str], bool], weights: Weights | None, is_pickled: Callable[[], bool]) -> Contents:
    adapter = any(map(holds, _ADAPTER_WEIGHTS))
    if weights is not None:
        return "both" if adapter else "checkpoint"
    if adapter:
        return "adapter"
    return "checkpoint" if is_pickled() else "adapter" if holds(_ADAPTER_CONFIG) else "nothing"


def weights_of(folder: Path, listed: Collection[str] | None = None) -> Weights | None:
    """Return the file that transformers loads a checkpoint from; None if there is none, or only a pickle.

    It is the one that ``transformers_weights`` in ``config.json`` names, else ``model.safetensors``, else the index.

    Args:
        folder: the checkpoint's.
        listed: names of the files that will be in the folder, if they are not all there yet.
    """
    if (folder / CONFIG).is_file():
        with suppress(FileError):  # a damaged configuration is refused when it is read
            named = read_json(folder / CONFIG).get("transformers_weights")
            if isinstance(named, str):
                return Weights(named, named.endswith(".index.json"))
    there = (lambda name: (folder / name).exists()) if listed is None else listed.__contains__
    return next((Weights(name, name == INDEX) for name in (SINGLE, INDEX) if there(name)), None)


def pickled(folder: Path) -> list[str]:
    """Return the names of a checkpoint's files that are pickles; a trainer's states are not its weights."""
    return sorted(name for name in _names(folder) if _PICKLES.fullmatch(name))


def inner(folder: Path) -> list[Path]:
    """Return the folders inside that hold an adapter or a checkpoint, in the order of their numbers.

    These are a trainer's ``checkpoint-500``, revisions in the Hub's cache with their subfolders, a run's adapters.
    """
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEEPEST):
        children = [child for one in level for child in _folders(one)][:_MOST]
        holding = [child for child in children if contents_of(child) != "nothing"]
        found += holding
        level = [child for child in children if child not in holding]
    return found


def missing(folder: Path, error: type[FileError] = FileError) -> FileError | None:
    """Return the error for a folder without adapter or checkpoint if its content explains why; None if not."""
    if inside := inner(folder):
        shown = [one.relative_to(folder).as_posix() for one in inside]
        got = ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
        what = "no adapter or checkpoint here, but in folders inside"
        return error(what, got=got, where=folder, fix=f"give one of them, such as {inside[-1]}")
    names = _names(folder)
    if states := [name for name in names if _DISTRIBUTED.fullmatch(name)]:
        what = "the states of a distributed training, which are not yet weights"
        fix = "gather them with zero_to_fp32.py or accelerate merge-weights, and give the result"
        return error(what, got=states[0], where=folder, fix=fix)
    if shards := [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]:
        return error("shards without their index", got=shards[0], where=folder, fix=f"copy {INDEX} too")
    if others := [name for name in names if _OTHERS.fullmatch(name)]:
        fix = f"save the model with transformers, as {SINGLE}, or the adapter with peft"
        return error("weights in files that are not loaded by their names", got=others[0], where=folder, fix=fix)
    return None


def ambiguous(folder: Path) -> FileError:
    """Return the error for a folder that holds an adapter and a checkpoint, when either may be meant."""
    what = "an adapter and a whole model in one folder: which one counts is not clear"
    return FileError(what, where=folder, fix="move the adapter's files into a folder of their own")


def refused_pickle(path: Path, error: type[FileError] = FileError) -> FileError:
    """Return the error for weights that are a pickle."""
    return error("the weights are a pickle, which can run code, and is refused", where=path, fix=_SAVE_AGAIN)


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _folders(folder: Path) -> Iterator[Path]:
    """Yield the folders in a folder, ``checkpoint-500`` before ``checkpoint-1000``; hidden ones are left out."""
    with suppress(OSError):
        entries = [one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")]
        yield from sorted(entries, key=lambda one: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", one.name)])
