"""Recognize adapters of a recipe that were trained before keys covered code.

Such an adapter is used unchanged, and not trained again. Its key covers the recipe, the base's weights and the task's
rows. Since it does not cover the code, everything else in the metadata must agree too.
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
_LATER = {"sharpness", "orthogonality", "progressive", "averaged"}
"""Keys of ``training`` that there were not."""


def earlier_key(config: FinetuneConfig, *, base: str, task: str, rows: str, family: str) -> str | None:
    """Return the key of an adapter from before keys covered code; None if it could not have been trained then.

    Args:
        config: a resolved mode of a recipe.
        base: fingerprint of the base's weights.
        task: its name.
        rows: fingerprint of the task's data.
        family: of the base.
    """
    if config.train not in _MODES or family not in _FAMILIES or config.model_extra:
        return None
    if any(getattr(config.training, key) for key in _LATER):
        return None
    train, linearize = _MODES[config.train]
    values = {**_recipe_values(config), "train": train, "linearize": linearize}
    return digest([_CODE, values, base, task, rows])


def _recipe_values(config: FinetuneConfig) -> dict[str, Any]:
    return config.resolved().model_dump(mode="json", exclude={"training": MACHINERY | _LATER})


def is_earlier(folder: Path, config: FinetuneConfig, *, base: str, task: str, rows: str, family: str) -> bool:
    """Return whether a folder contains the adapter that an earlier version trained for this configuration.

    Args:
        folder: of the adapter.
        config, base, task, rows, family: see `earlier_key`.
    """
    key = earlier_key(config, base=base, task=task, rows=rows, family=family)
    try:
        metadata = read_metadata(folder)
        if key is None or metadata is None or metadata.stage != key:
            return False
        return _agrees(metadata, config, base, task, family)
    except TangoraError:
        return False


def _agrees(metadata: Metadata, config: FinetuneConfig, base: str, task: str, family: str) -> bool:
    """Return whether the recorded metadata agree with the configuration.

    Raises:
        TangoraError: the recorded configuration cannot be read.
    """
    mode, start = mode_of(config), metadata.initial
    recorded = validate(FinetuneConfig, metadata.recipe or {}, "tangora.json")
    lora = mode.kind == "lora"
    return (
        _recipe_values(recorded) == _recipe_values(config)
        and (metadata.train, metadata.kind, metadata.linearize) == (config.train, mode.kind, mode.linearize)
        and (metadata.mode, metadata.task, metadata.seed) == (config.mode, task, config.seed)
        and (metadata.base.fingerprint, metadata.base.family) == (base, family)
        and (metadata.joint, metadata.fused, metadata.distilled) == (None, None, None)
        and (start is not None) == lora
        and (start is None or (start.seed, start.a_init, start.init) == _start(config))
    )


def _start(config: FinetuneConfig) -> tuple[Any, ...]:
    return config.seed, config.lora.a_init, config.lora.init
