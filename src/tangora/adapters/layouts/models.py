"""The table of models: their modules by component, and the names that each format has for them.

A naming is a prefix, the path of diffusers or of the original implementation, and whether dots become underscores. The
first naming of a component is written; the others are read too. So a further model or format is a further row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tangora.adapters.layouts.modules import Module, clip, flux, t5, unet

__all__ = ["MODELS", "Model", "Naming", "titles"]


@dataclass(frozen=True)
class Naming:
    """How a format names the modules of a component.

    Attributes:
        prefix: before the path.
        original: whether the path is that of the original implementation, else of diffusers.
        underscores: whether the path's dots become underscores.
    """

    prefix: str
    original: bool = False
    underscores: bool = False

    def name(self, module: Module) -> str:
        """Return the name of a module."""
        path = module.original if self.original else module.path
        return self.prefix + (path.replace(".", "_") if self.underscores else path)


Namings = Mapping[str, tuple[Naming, ...]]


@dataclass(frozen=True)
class Model:
    """A model whose names are known.

    Attributes:
        title: its name for people.
        components: component, as diffusers' pipelines name it -> its modules.
        namings: format -> component -> its namings.
        declared: what the metadata of a file names its model (``ss_base_model_version``, ``modelspec.architecture``).
        context: width of the texts that its attention attends to; None if it has no such layer.
    """

    title: str
    components: Mapping[str, tuple[Module, ...]]
    namings: Mapping[str, Namings]
    declared: re.Pattern[str]
    context: int | None = None


def _kohya(*prefixes: str, original: bool = False) -> tuple[Naming, ...]:
    return tuple(Naming(prefix, original, underscores=True) for prefix in prefixes)


def _namings(model: str, kohya: Namings, comfy: Mapping[str, str]) -> dict[str, Namings]:
    """Return the namings of a model; ``comfy`` maps text encoders to ComfyUI's names for them."""
    texts = {component: (Naming(f"text_encoders.{name}.transformer."),) for component, name in comfy.items()}
    return {
        "kohya": kohya,
        "diffusers": {
            model: (Naming(f"{model}."), Naming("")),
            **{component: (Naming(f"{component}."),) for component in comfy},
        },
        "comfy": {model: (Naming("diffusion_model.", original=True), Naming("", original=True)), **texts},
        "peft": {model: (Naming("base_model.model."), Naming("base_model.model.", original=True))},
    }


_DIFFUSERS, _ORIGINAL = _kohya("lora_unet_", "lycoris_"), _kohya("lora_unet_", original=True)
_SD_TEXT = _kohya("lora_te_", "lora_te1_")
_SD = {"unet": (*_DIFFUSERS, *_ORIGINAL), "text_encoder": _SD_TEXT}


def _sd(version: int, layers: int, text: str, *, convolutions: bool, context: int) -> Model:
    parts = {"unet": unet((1, 1, 1, 0), (0, 1, 1, 1), convolutions=convolutions, added=False)}
    return Model(
        f"Stable Diffusion {version}",
        {**parts, "text_encoder": clip(layers)},
        _namings("unet", _SD, {"text_encoder": text}),
        re.compile(rf"sd_?v?{version}(?!\d)|stable-diffusion-v{version}(?!\d)"),
        context,
    )


@cache
def _models() -> dict[str, Model]:
    sdxl: Namings = {
        "unet": (*_ORIGINAL, *_DIFFUSERS),
        "text_encoder": _kohya("lora_te1_"),
        "text_encoder_2": _kohya("lora_te2_"),
    }
    flux_names: Namings = {
        "transformer": (*_ORIGINAL, *_kohya("lora_transformer_", "lycoris_")),
        "text_encoder": _kohya("lora_te1_", "lora_te_"),
        "text_encoder_2": _kohya("lora_te3_", "lora_te2_"),
    }
    return {
        "sd1": _sd(1, 12, "clip_l", convolutions=True, context=768),
        "sd2": _sd(2, 23, "clip_h", convolutions=False, context=1024),
        "sdxl": Model(
            "Stable Diffusion XL",
            {
                "unet": unet((0, 2, 10), (10, 2, 0), convolutions=False, added=True),
                "text_encoder": clip(12),
                "text_encoder_2": clip(32),
            },
            _namings("unet", sdxl, {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}),
            re.compile(r"sdxl|stable-diffusion-xl"),
            2048,
        ),
        "flux": Model(
            "Flux.1",
            {"transformer": flux(19, 38), "text_encoder": clip(12), "text_encoder_2": t5(24)},
            _namings("transformer", flux_names, {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"}),
            re.compile(r"flux-?1"),
        ),
    }


MODELS: Mapping[str, Model] = _models()
"""Key -> model."""


def titles(models: tuple[str, ...]) -> str:
    """Return the names of models for a message.

    >>> titles(("sd1", "sd2"))
    'Stable Diffusion 1 or Stable Diffusion 2'
    """
    return " or ".join(MODELS[key].title for key in models) or "an unknown model"
