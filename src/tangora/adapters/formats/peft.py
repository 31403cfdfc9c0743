"""The format `peft`: one file with peft's names, without its folder: of one network only, and with alphas.

    base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight, .lora_B.weight, .alpha

A folder with ``adapter_config.json`` is of the format `lora`. Without it the scaling is not known; files of Flux and
Stable Diffusion are read with 1, as diffusers and ComfyUI read them, and others are refused if they have no alphas.
"""

from __future__ import annotations

from tangora.adapters.formats._single_file.format import SingleFileFormat
from tangora.adapters.formats._single_file.writing import Style

__all__ = ["FORMAT"]

_SAMPLES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (6, 4),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k": (3, 5),
}

FORMAT = SingleFileFormat("peft", Style("lora_A", "lora_B", alpha=True), "lora_peft.safetensors", _SAMPLES)
