"""The pretrained encoder on disk: made on first use, found again under the hash of everything that decides it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import torch

from tangora.errors import FileError
from tangora.quickstart.data import pretraining
from tangora.quickstart.training import Progress, Settings, pretrain, save
from tangora.support.extras import require
from tangora.support.files import atomic_dir, digest, file_digest, read_json, write_json

__all__ = ["cache_folder", "encoder"]

# To be raised with every change of the code that changes the weights.
_CODE_VERSION = 1
_RECORD = "tangora_quickstart.json"
_WEIGHTS = "model.safetensors"


def cache_folder() -> Path:
    """``$TANGORA_CACHE``, or the place for caches of this user and system."""
    chosen = os.environ.get("TANGORA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    require("quickstart", purpose="the quickstart")
    from platformdirs import user_cache_path  # deferred: an extra

    return user_cache_path("tangora")


def encoder(progress: Progress | None = None, settings: Settings | None = None) -> Path:
    """The folder of the pretrained tiny CLIP (``CLIPModel``, tokenizer, image processor), made now if it is not there.

    A damaged cache entry is made again. Two processes may make the same entry; one of them is kept.

    Args:
        progress: called after each pretraining step with (steps done, steps, loss); not at all when cached.
        settings: another model or schedule than the quickstart's.

    Raises:
        DataError: an installed package lacks one of the pictures.
        OutputError: the cache cannot be written.
    """
    settings = settings or Settings()
    folder = cache_folder() / f"quickstart-{_key(settings)[:16]}"
    if not _intact(folder):
        model, words = pretrain(settings, progress)
        with atomic_dir(folder) as scratch:  # only now: a second process may be training the same entry
            save(model, words, scratch)
            write_json(scratch / _RECORD, {"settings": asdict(settings), "model": file_digest(scratch / _WEIGHTS)})
    return folder


def _key(settings: Settings) -> str:
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


def _intact(folder: Path) -> bool:
    """Whether the entry is whole: it appeared at once, so only what happened to it since can have broken it."""
    try:
        return bool(read_json(folder / _RECORD)["model"] == file_digest(folder / _WEIGHTS))
    except (FileError, OSError, KeyError):
        return False
