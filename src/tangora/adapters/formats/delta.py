"""The format `delta`: changes of whole parameters, from full fine-tuning, in ``delta.safetensors``, in float32."""

from __future__ import annotations

from typing import Final

from tangora.adapters.formats._tensors import TensorsFormat

__all__ = ["FORMAT"]


class _DeltaFormat(TensorsFormat):
    name: Final = "delta"
    kind: Final = "full"
    file: Final = "delta.safetensors"


FORMAT = _DeltaFormat()
