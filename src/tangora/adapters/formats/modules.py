"""The format `modules`: parameters of modules that a mode adds, in ``modules.safetensors``, in float32."""

from __future__ import annotations

from typing import Final

from tangora.adapters.formats._tensors import TensorsFormat

__all__ = ["FORMAT"]


class _ModulesFormat(TensorsFormat):
    name: Final = "modules"
    kind: Final = "modules"
    file: Final = "modules.safetensors"


FORMAT = _ModulesFormat()
