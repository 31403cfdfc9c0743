"""The cache of the pretrained models: made on first use, stored under the hash of everything they depend on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tangora.errors import FileError
from tangora.quickstart import tiny_decoder, tiny_swin
from tangora.quickstart.data import pretraining
from tangora.quickstart.tiny_decoder import DecoderSettings
from tangora.quickstart.tiny_swin import SwinSettings
from tangora.quickstart.training import PretrainingSettings, Progress, pretrain, save
from tangora.support.extras import require
from tangora.support.files import atomic_dir, digest, file_digest, reachable, read_json, write_json

__all__ = ["cache_folder", "decoder", "encoder", "swin"]

# Increase it with every change of the code that changes the weights.
_CODE_VERSION = 1
_RECORD = "tangora_quickstart.json"
_WEIGHTS = "model.safetensors"


def cache_folder() -> Path:
    """Return ``$TANGORA_CACHE``, or the user's cache folder on this system."""
    chosen = os.environ.get("TANGORA_CACHE")
    if chosen:
        return reachable(chosen, expand=True)
    require("quickstart", purpose="the quickstart")
    from platformdirs import user_cache_path  # deferred: an extra

    return user_cache_path("tangora")


def encoder(progress: Progress | None = None, settings: PretrainingSettings | None = None) -> Path:
    """Return the folder of the pretrained tiny CLIP (``CLIPModel``, tokenizer, image processor); make it on first use.

    A damaged cache entry is made again. If two processes make the same entry, one of the two is kept.

    Args:
        progress: called after each pretraining step with (steps done, steps, loss); not called if it is cached.
        settings: another model or schedule than the default.

    Raises:
        DataError: an installed package lacks one of the pictures.
        OutputError: the cache cannot be written.
    """
    settings = settings or PretrainingSettings()
    return _entry(f"quickstart-{_key(settings)[:16]}", settings, lambda: pretrain(settings, progress), save)


def decoder(progress: Progress | None = None, settings: DecoderSettings | None = None) -> Path:
    """Return the folder of the tiny decoder (``LlamaForCausalLM``, tokenizer); make it on first use, as `encoder`.

    Args:
        progress: called after each step with (steps done, steps, loss); not called if it is cached.
        settings: another model or schedule than the default.

    Raises:
        OutputError: the cache cannot be written.
    """
    settings = settings or DecoderSettings()
    name = f"decoder-{_decoder_key(settings)[:16]}"
    return _entry(name, settings, lambda: tiny_decoder.pretrain(settings, progress), tiny_decoder.save)


def swin(progress: Progress | None = None, settings: SwinSettings | None = None) -> Path:
    """Return the folder of the tiny Swin (``SwinModel``, image processor); make it on first use, as `encoder`.

    Args:
        progress: called after each step with (steps done, steps, loss); not called if it is cached.
        settings: another model or schedule than the default.

    Raises:
        DataError: an installed package lacks one of the pictures.
        OutputError: the cache cannot be written.
    """
    settings = settings or SwinSettings()
    return _entry(
        f"swin-{_key(settings)[:16]}", settings, lambda: tiny_swin.pretrain(settings, progress), tiny_swin.save
    )


def _entry(
    name: str, settings: Any, pretrained: Callable[[], tuple[Any, Any]], save: Callable[[Any, Any, Path], None]
) -> Path:
    """Return the folder of an entry, which is made if it is missing or damaged."""
    folder = cache_folder() / name
    if not _intact(folder):
        model, tokenizer = pretrained()
        with atomic_dir(folder) as scratch:  # only now: a second process may be training the same entry
            save(model, tokenizer, scratch)
            write_json(scratch / _RECORD, {"settings": asdict(settings), "model": file_digest(scratch / _WEIGHTS)})
    return folder


def _key(settings: PretrainingSettings | SwinSettings) -> str:
    import transformers  # deferred: it takes seconds to import

    images, captions = pretraining()
    return digest(
        {
            "code": _CODE_VERSION,
            "settings": asdict(settings),
            "images": hashlib.sha256(images.tobytes()).hexdigest(),
            "captions": captions,
            "versions": [torch.__version__, transformers.__version__],
        }
    )


def _decoder_key(settings: DecoderSettings) -> str:
    import transformers  # deferred: it takes seconds to import

    versions = [torch.__version__, transformers.__version__]
    texts = tiny_decoder.corpus()
    return digest({"code": _CODE_VERSION, "settings": asdict(settings), "texts": texts, "versions": versions})


def _intact(folder: Path) -> bool:
    """Return whether the entry's weights are unchanged; it is published atomically, so it was complete at first."""
    try:
        return bool(read_json(folder / _RECORD)["model"] == file_digest(folder / _WEIGHTS))
    except (FileError, OSError, KeyError):
        return False
