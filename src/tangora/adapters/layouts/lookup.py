"""Look names up in the table: which models have a file's names, and which name a format has for a site."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from tangora.adapters.layouts.models import MODELS
from tangora.adapters.layouts.modules import Module

__all__ = [
    "FAMILIES",
    "Place",
    "family_of",
    "models_of",
    "name_of",
    "pieces_of",
    "place_of",
    "places",
    "writes_original",
]

FAMILIES: Mapping[str, re.Pattern[str]] = {
    "kohya": re.compile(r"(lora_unet|lora_transformer|lora_te\d?|lora_prior_te|lora_prior_unet|lycoris)_[^.]+"),
    "peft": re.compile(r"base_model\.model\..+"),
    "comfy": re.compile(r"(diffusion_model|text_encoders)\..+"),
    "diffusers": re.compile(r"(unet|transformer|transformer_2|text_encoder(_\d)?)\..+"),
}
"""Format -> the names of modules by which it is recognized, whatever the model is."""


@dataclass(frozen=True)
class Place:
    """What a name stands for in a model.

    Attributes:
        site: component and path.
        modules: the module; several if the original fuses them.
    """

    site: str
    modules: tuple[Module, ...]

    @property
    def fused(self) -> bool:
        """Whether diffusers has other modules, or the rows in another order."""
        return self.modules[0].rows is not None and self.site.endswith(self.modules[0].original)


@cache
def places(model: str, format_name: str) -> Mapping[str, Place]:
    """Return the names that a format may have for a model's modules, and what they stand for."""
    found: dict[str, Place] = {}
    for component, namings in MODELS[model].namings[format_name].items():
        for naming in namings:
            for original, modules in _grouped(model, component).items():
                if naming.original and modules[0].rows is not None:
                    found.setdefault(naming.name(modules[0]), Place(f"{component}.{original}", modules))
                    continue
                for module in modules:
                    found.setdefault(naming.name(module), Place(f"{component}.{module.path}", (module,)))
    return found


@cache
def _grouped(model: str, component: str) -> Mapping[str, tuple[Module, ...]]:
    groups: dict[str, tuple[Module, ...]] = {}
    for module in MODELS[model].components[component]:
        groups[module.original] = (*groups.get(module.original, ()), module)
    return groups


@cache
def _named(model: str, format_name: str) -> Mapping[str, str]:
    """Return site -> the name that is written, for the sites that the format has names for."""
    named: dict[str, str] = {}
    for name, place in places(model, format_name).items():
        named.setdefault(place.site, name)
    return named


@cache
def pieces_of(model: str) -> Mapping[str, Place]:
    """Return the sites that the original fuses, and their modules in diffusers."""
    found: dict[str, Place] = {}
    for component in MODELS[model].components:
        for original, modules in _grouped(model, component).items():
            if modules[0].rows is not None:
                found[f"{component}.{original}"] = Place(f"{component}.{original}", modules)
    return found


def writes_original(model: str, format_name: str, component: str) -> bool:
    """Return whether a format writes the original's names for a component."""
    namings = MODELS[model].namings[format_name].get(component)
    return namings is not None and namings[0].original


def models_of(names: Iterable[str], format_name: str) -> tuple[str, ...]:
    """Return the models that have all of a file's names in a format.

    >>> models_of(["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_37_linear1"], "kohya")
    ('flux',)
    >>> models_of(["lora_te_text_model_encoder_layers_0_mlp_fc1"], "kohya")
    ('sd1', 'sd2', 'flux')
    """
    held = set(names)
    return tuple(model for model in MODELS if held <= places(model, format_name).keys())


def family_of(names: Iterable[str]) -> str | None:
    """Return the format that has the names of a file's modules; None if none has all of them.

    >>> family_of(["lora_te_text_model_encoder_layers_0_mlp_fc1"]), family_of(["lm_head"])
    ('kohya', None)
    """
    held = set(names)
    if not held:
        return None
    for name, pattern in FAMILIES.items():
        if all(pattern.fullmatch(one) for one in held):
            return name
    # Without a prefix only the names of a known model count: any network may have names like these.
    return next((name for name in ("diffusers", "comfy") if models_of(held, name)), None)


def place_of(name: str, model: str, format_name: str) -> Place:
    """Return what a name of `models_of` stands for."""
    return places(model, format_name)[name]


def name_of(site: str, model: str, format_name: str) -> str | None:
    """Return the name that a format writes for a site; None if it has none.

    >>> name_of("unet.down_blocks.1.attentions.0.proj_in", "sdxl", "kohya")
    'lora_unet_input_blocks_4_1_proj_in'
    >>> name_of("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "sdxl", "kohya")
    'lora_te2_text_model_encoder_layers_0_mlp_fc1'
    """
    return _named(model, format_name).get(site)
