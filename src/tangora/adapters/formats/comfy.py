"""The format `comfy`: one file with the original implementation's names, as ComfyUI saves it.

diffusion_model.input_blocks.1.1.proj_in.lora_down.weight, .lora_up.weight, .alpha
text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_down.weight
"""

from __future__ import annotations

from tangora.adapters.formats._single_file.format import SingleFileFormat
from tangora.adapters.formats._single_file.writing import Style

__all__ = ["FORMAT"]

_SAMPLES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (6, 4),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (3, 5),
}

FORMAT = SingleFileFormat("comfy", Style("lora_down", "lora_up", alpha=True), "lora_comfy.safetensors", _SAMPLES)
