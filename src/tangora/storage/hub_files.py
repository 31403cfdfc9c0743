"""Choose the files of a repository that are needed of an adapter or of a checkpoint; never a pickle."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

from tangora.errors import AdapterError, ArgumentError, FileError
from tangora.storage.recognition import Contents, contents_among, weights_of
from tangora.support.files import read_json
from tangora.support.hub import HubReference

__all__ = ["Purpose", "needed_content", "small_files_of", "weights_among"]

Purpose = Literal["adapter", "checkpoint", "any"]
"""What a folder is needed as; ``any``: whatever it holds."""

_SMALL = re.compile(
    r"(?!\.)(.*\.(json|jinja|model|spm|tiktoken|codes|bpe|md|tokenizer|txt)|vocab[^/]*|(licen[cs]e|notice|copying)[^/]*)",
    re.IGNORECASE,
)
_CODE = re.compile(r"(?!\.)[^/]+\.py")
_TRAINING = re.compile(
    r"training_args.*|trainer_state\.json|(all|train|eval|predict|test)_results\.json|optimizer.*|scheduler.*|rng_state.*"
)
_FORMS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|ot|npz|npy|pkl|pickle)", re.IGNORECASE)
_BESIDE = re.compile(
    r"additional_chat_templates/[^/]+\.jinja|custom_generate/[^/]+\.(py|txt|md)|\d+_\w+/[^/]+\.(json|safetensors|txt)"
)
_HEADS = re.compile(r"heads/[^/]+\.(json|safetensors)")
_FOUND = re.compile(r".*\.safetensors(\.index\.json)?")
_ADAPTER_CONFIG, _ADAPTER_PICKLE = "adapter_config.json", "adapter_model.bin"
_MANY = 6  # names that an error lists


def needed_content(names: Collection[str], purpose: Purpose, reference: HubReference) -> Contents:
    """Return what a folder of a repository holds, or refuse it before anything large is fetched.

    Args:
        names: the paths of the files in the folder.
        purpose: what it is needed as.
        reference: the folder.

    Returns:
        ``adapter``, ``checkpoint``, or ``nothing`` for a single safetensors file of another format.

    Raises:
        ArgumentError: an adapter where a checkpoint is needed.
        AdapterError: a checkpoint where an adapter is needed.
        FileError: both, neither, or pickles only.
    """
    top = {name for name in names if "/" not in name}
    held = contents_among(top)
    if held == "both":
        what = "an adapter and a whole model in one folder: which one counts is not clear"
        raise FileError(what, where=reference, fix="ask for the adapter in a folder of its own")
    if held == "adapter" and purpose == "checkpoint":
        fix = "give the base model as --base BASE, and the adapters alone before it"
        raise ArgumentError("an adapter where a full checkpoint is needed", where=reference, fix=fix)
    if held == "checkpoint" and purpose == "adapter":
        fix = "give adapters, and merge checkpoints with tangora merge"
        raise AdapterError("a full checkpoint where an adapter is needed", where=reference, fix=fix)
    tensors = sorted(name for name in top if name.endswith(".safetensors"))
    only_pickled = held == "adapter" and contents_among(top - {_ADAPTER_PICKLE, _ADAPTER_CONFIG}) != "adapter"
    if (only_pickled and _ADAPTER_PICKLE in top) or not any(_FOUND.fullmatch(name) for name in top):
        _refuse_pickles(top, reference)
    if held == "nothing" and (purpose == "checkpoint" or len(tensors) != 1):
        raise _nothing(names, tensors, reference)
    return held


def _refuse_pickles(top: Collection[str], reference: HubReference) -> None:
    pickles = sorted(name for name in top if re.fullmatch(r".*\.(bin|pt|pth|ckpt|pkl|pickle)", name))
    if pickles:
        what = "the weights are a pickle, which can run code, and is not fetched"
        fix = "ask for weights in safetensors, or save it again with safe_serialization=True where you trust it"
        raise FileError(what, got=pickles[0], where=reference, fix=fix)


def _nothing(names: Collection[str], tensors: list[str], reference: HubReference) -> FileError:
    inside: dict[str, set[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        inside.setdefault(folder, set()).add(file)
    holding = sorted(folder for folder, held in inside.items() if folder and contents_among(held) != "nothing")
    if holding:
        what = "no adapter or checkpoint here, but in folders inside"
        place = "/".join(filter(None, [reference.repository, reference.subfolder, holding[0]]))
        example = HubReference(place, revision=reference.revision)
        return FileError(what, got=_listed(holding), where=reference, fix=f"give one of them, such as {example}")
    if tensors:
        what = "several files of weights, none under a name that is loaded"
        return FileError(
            what, got=_listed(tensors), where=reference, fix="fetch one with hf download, and give its path"
        )
    others = sorted(name for name in names if _FORMS.fullmatch(name)) or sorted(names)
    got = {"got": _listed(others)} if others else {}
    return FileError("no adapter or checkpoint in safetensors there", where=reference, fix="check the name", **got)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MANY]) + (f" and {len(names) - _MANY} more" if len(names) > _MANY else "")


def small_files_of(names: Collection[str], content: Contents) -> list[str]:
    """Return the files besides the weights: configuration, provenance, card, tokenizer, heads; of a checkpoint, code.

    Args:
        names: the paths of the files in the folder.
        content: what the folder holds.
    """
    return sorted(name for name in names if _is_small(name, content))


def _is_small(name: str, content: Contents) -> bool:
    if "/" in name:
        return _HEADS.fullmatch(name) is not None or (content == "checkpoint" and _BESIDE.fullmatch(name) is not None)
    if _TRAINING.fullmatch(name) or _FORMS.fullmatch(name) or re.search(r"\.bin\.index\.json$", name):
        return False
    return _SMALL.fullmatch(name) is not None or (content == "checkpoint" and _CODE.fullmatch(name) is not None)


def weights_among(folder: Path, names: Collection[str], content: Contents, reference: HubReference) -> list[str]:
    """Return the files of weights, which are fetched last: their presence shows that the others are there.

    Args:
        folder: a local folder with the small files.
        names: the paths of the files in the repository's folder.
        content: what the folder holds.
        reference: the repository's folder.

    Raises:
        FileError: a file that an index or a configuration names is missing, or is none of the folder.
    """
    if content != "checkpoint":
        return sorted(name for name in names if "/" not in name and name.endswith(".safetensors"))
    chosen = sorted(dict.fromkeys(_of_checkpoint(folder, names)))
    for name in chosen:
        if name not in names or "/" in name or not name.endswith((".safetensors", ".json")):
            fix = "ask for a complete repository"
            raise FileError("a file of weights is not in the repository", got=name, where=reference, fix=fix)
    return chosen


def _of_checkpoint(folder: Path, names: Collection[str]) -> Iterator[str]:
    weights = weights_of(folder, names)
    if weights is None:
        return
    yield weights.name
    if weights.is_index and (folder / weights.name).is_file():
        table = read_json(folder / weights.name).get("weight_map")
        yield from (str(name) for name in (table.values() if isinstance(table, dict) else ()))
