"""The format `kohya`: one file with the names of kohya's scripts and of LyCORIS.

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, .lora_up.weight, .alpha

The names of modules have underscores for dots, so only those of a known model are converted. SDXL and Flux have the
original implementation's paths. LyCORIS' LoHa and LoKr are read; what is written is LoRA.
"""

from __future__ import annotations

from tangora.adapters.formats._single_file.format import SingleFileFormat
from tangora.adapters.formats._single_file.writing import Style

__all__ = ["FORMAT"]

_SAMPLES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (6, 4),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (3, 5),
}

FORMAT = SingleFileFormat("kohya", Style("lora_down", "lora_up", alpha=True), "lora_kohya.safetensors", _SAMPLES)
