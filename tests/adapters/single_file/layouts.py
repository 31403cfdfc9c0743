"""Tiny files with the names of real layouts, and what they add to the weights, computed apart in float64."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

WIDTH = 8  # of every layer's input, and the unit of its output


def lora(generator, rows=WIDTH, columns=WIDTH, rank=4, kernel=()):
    """Return A and B in half precision, as trainers save them."""
    ones = (1,) * len(kernel)
    a = torch.randn(rank, columns, *kernel, generator=generator)
    return a.half(), torch.randn(rows, rank, *ones, generator=generator).half()


def delta(a, b, scaling=1.0):
    """Return ``s·B A`` in float64."""
    return scaling * (b.double().flatten(1) @ a.double().flatten(1))


SDXL = {  # kohya's name -> (diffusers' site, multiple of the width, kernel)
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        1,
        (),
    ),
    "lora_unet_output_blocks_0_1_transformer_blocks_9_ff_net_0_proj": (
        "unet.up_blocks.0.attentions.0.transformer_blocks.9.ff.net.0.proj",
        8,
        (),
    ),
    "lora_unet_middle_block_1_proj_in": ("unet.mid_block.attentions.0.proj_in", 1, ()),
    "lora_unet_input_blocks_3_0_op": ("unet.down_blocks.0.downsamplers.0.conv", 1, (3, 3)),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        1,
        (),
    ),
    "lora_te2_text_model_encoder_layers_31_mlp_fc1": (
        "text_encoder_2.text_model.encoder.layers.31.mlp.fc1",
        4,
        (),
    ),
}
SD1 = {
    "lora_unet_down_blocks_0_attentions_0_proj_in": ("unet.down_blocks.0.attentions.0.proj_in", 1, (1, 1)),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
        1,
        (),
    ),
    "lora_unet_up_blocks_3_resnets_2_conv_shortcut": ("unet.up_blocks.3.resnets.2.conv_shortcut", 1, (1, 1)),
    "lora_te_text_model_encoder_layers_11_mlp_fc2": ("text_encoder.text_model.encoder.layers.11.mlp.fc2", 1, ()),
}
FLUX = {
    "lora_unet_double_blocks_0_img_attn_qkv": ("transformer.double_blocks.0.img_attn.qkv", 3, ()),
    "lora_unet_double_blocks_18_txt_mlp_2": ("transformer.transformer_blocks.18.ff_context.net.2", 1, ()),
    "lora_unet_single_blocks_37_linear1": ("transformer.single_blocks.37.linear1", 7, ()),
    "lora_unet_final_layer_adaLN_modulation_1": ("transformer.final_layer.adaLN_modulation.1", 2, ()),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": ("text_encoder.text_model.encoder.layers.0.mlp.fc1", 4, ()),
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
        1,
        (),
    ),
}


def kohya(path, table, seed, rank=4, alpha=2.0, metadata=None):
    """Write a file of kohya's names; return site -> what it adds to the weight, in float64."""
    generator, tensors, added = torch.Generator().manual_seed(seed), {}, {}
    for name, (site, times, kernel) in table.items():
        a, b = lora(generator, times * WIDTH, rank=rank, kernel=kernel)
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
        tensors[f"{name}.alpha"] = torch.tensor(alpha).half()
        added[site] = delta(a, b, alpha / rank)
    save_file(tensors, path, metadata=metadata)
    return added
