"""The format `modules`: parameters of modules that a mode adds, in ``modules.safetensors``, in float32."""

from __future__ import annotations

from tangora.adapters.formats._tensors import TensorsFormat

__all__ = ["FORMAT"]


class _ModulesFormat(TensorsFormat):
    name = "modules"
    kind = "modules"
    file = "modules.safetensors"


FORMAT = _ModulesFormat()
