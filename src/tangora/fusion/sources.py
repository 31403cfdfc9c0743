"""An adapter that was fused, and its factors straight from its file, for checks independent of Tangora's reader."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from tangora.adapters.adapter import Adapter
from tangora.adapters.formats.lora.names import PREFIX, unwrapped
from tangora.adapters.formats.lora.reading import CONFIG, WEIGHTS
from tangora.support.json_text import parse_json

__all__ = ["SourceAdapter"]


@dataclass(frozen=True)
class SourceAdapter:
    """An adapter that was fused, and the folder it was read from; None if it was made in memory."""

    adapter: Adapter
    folder: Path | None = None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``adapter_config.json`` if its updates are plain factors, else empty."""
        if self.folder is None or not (self.folder / CONFIG).is_file() or self.adapter.start:
            return {}
        config: dict[str, Any] = parse_json((self.folder / CONFIG).read_text(encoding="utf-8"))
        changes_base = str(config.get("init_lora_weights")).lower() in ("pissa", "olora")
        changes_base = changes_base or config.get("peft_type", "LORA") != "LORA"
        return {} if config.get("use_dora") or config.get("target_parameters") or changes_base else config

    def factors(self, site: str) -> tuple[Tensor, Tensor] | None:
        """Return ``s·B`` and A in float64, straight from the file; None if it has none for this site."""
        if self.folder is None or not self.config:
            return None
        site = self.adapter.details.names.get(site, site)
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            held = {unwrapped(key): key for key in file.keys()}  # noqa: SIM118
            linear, embedding = (f"{PREFIX}{site}.{kind}" for kind in ("lora_{}.weight", "lora_embedding_{}"))
            kind = next((k for k in (linear, embedding) if k.format("A") in held), None)
            if kind is None:
                return None
            a, b = (file.get_tensor(held[kind.format(part)]).double().flatten(1) for part in "AB")
        rank, patterns = len(a), self.config.get("alpha_pattern") or {}
        alphas = [alpha for key, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", site)]
        alpha = alphas[0] if alphas else self.config.get("lora_alpha", 8)
        return b * (alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)), a
