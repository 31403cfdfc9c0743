"""Adapters that were trained before keys covered code: which of them are what a recipe describes.

Such an adapter is taken as it is, and not trained again. Its key covers the recipe, the base's weights and the task's
rows. Since it does not cover the code, everything else that the metadata records has to agree too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tangora.adapters.metadata import Metadata, read_metadata
from tangora.config.settings import FinetuneConfig
from tangora.errors import TangoraError
from tangora.modes.contract import mode_of
from tangora.modes.stage import MACHINERY
from tangora.support.files import digest
from tangora.support.validation import validate

__all__ = ["earlier_key", "is_earlier"]

_CODE = "finetune-1"
_MODES = {
    "lora": ("adapter", "none"),
    "l-lora": ("adapter", "module"),
    "tangent": ("adapter", "model"),
    "full": ("full", "none"),
    "full-tangent": ("full", "model"),
}
"""Every mode that had such a key -> the values of ``train`` and ``linearize`` in it."""
_FAMILIES = {"image-zero-shot", "text-to-text", "text-zero-shot"}


def earlier_key(config: FinetuneConfig, *, base: str, task: str, rows: str, family: str) -> str | None:
    """Return the key that an adapter got before keys covered code; None if none could be trained like this then.

    Args:
        config: a resolved mode of a recipe.
        base: fingerprint of the base's weights.
        task: its name.
        rows: fingerprint of what is trained on.
        family: of the base.
    """
    if config.train not in _MODES or family not in _FAMILIES or config.model_extra:
        return None
    train, linearize = _MODES[config.train]
    decides = {**_decides(config), "train": train, "linearize": linearize}
    return digest([_CODE, decides, base, task, rows])


def _decides(config: FinetuneConfig) -> dict[str, Any]:
    return config.resolved().model_dump(mode="json", exclude={"training": MACHINERY})


def is_earlier(folder: Path, config: FinetuneConfig, *, base: str, task: str, rows: str, family: str) -> bool:
    """Return whether a folder holds the adapter that an earlier version trained for this very configuration.

    Args:
        folder: of the adapter.
        config, base, task, rows, family: see `earlier_key`.
    """
    key = earlier_key(config, base=base, task=task, rows=rows, family=family)
    try:
        about = read_metadata(folder)
        if key is None or about is None or about.stage != key:
            return False
        return _agrees(about, config, base, task, family)
    except TangoraError:
        return False


def _agrees(about: Metadata, config: FinetuneConfig, base: str, task: str, family: str) -> bool:
    """Whether nothing that the metadata records contradicts the configuration.

    Raises:
        TangoraError: the recorded configuration cannot be read.
    """
    mode, start = mode_of(config), about.initial
    recorded = validate(FinetuneConfig, about.recipe or {}, "tangora.json")
    lora = mode.kind == "lora"
    return (
        _decides(recorded) == _decides(config)
        and (about.train, about.kind, about.linearize) == (config.train, mode.kind, mode.linearize)
        and (about.mode, about.task, about.seed) == (config.mode, task, config.seed)
        and (about.base.fingerprint, about.base.family) == (base, family)
        and (about.joint, about.fused, about.distilled) == (None, None, None)
        and (start is not None) == lora
        and (start is None or (start.seed, start.a_init, start.init) == _start(config))
    )


def _start(config: FinetuneConfig) -> tuple[Any, ...]:
    return config.seed, config.lora.a_init, config.lora.init
