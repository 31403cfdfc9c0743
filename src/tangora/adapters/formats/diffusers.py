"""The format `diffusers`: one file as the pipelines of diffusers save it, with peft's names behind the component's.

    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight, .lora_B.weight

Older names (``lora.down``, ``processor.to_q_lora.down``) are read too. The scaling is 1, which every version of
diffusers and ComfyUI assumes for files without alphas; the configurations of peft that diffusers keeps in the file's
metadata are read. All sites of a component are written with one rank, as earlier versions need it.
"""

from __future__ import annotations

from tangora.adapters.formats._single_file.format import SingleFileFormat
from tangora.adapters.formats._single_file.writing import Style

__all__ = ["FORMAT"]

_SAMPLES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (6, 4),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (3, 5),
}
_STYLE = Style("lora_A", "lora_B", alpha=False, uniform=True)

FORMAT = SingleFileFormat("diffusers", _STYLE, "pytorch_lora_weights.safetensors", _SAMPLES)
