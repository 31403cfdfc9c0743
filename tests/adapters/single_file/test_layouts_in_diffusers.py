"""The table of names against the module trees of diffusers, and conversions against diffusers' own readers.

Skipped where diffusers is not installed.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tangora
from tangora.adapters.adapter import Adapter, load
from tangora.adapters.layouts.models import MODELS
from tangora.updates.task_vector import LowRank

diffusers = pytest.importorskip("diffusers")

SMALL = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": 8}


def unet(key):
    config = dict(SMALL)
    if key == "sd2":
        config |= {"use_linear_projection": True}
    if key == "sdxl":
        config |= {
            "block_out_channels": (8, 8, 8),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 32,
        }
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**config)


def flux():
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    with torch.device("meta"):
        return diffusers.FluxTransformer2DModel(
            **shape, num_layers=19, num_single_layers=38, in_channels=4, axes_dims_rope=(2, 2, 4), guidance_embeds=True
        )


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize("key", ["sd1", "sd2", "sdxl"])
def test_every_layer_of_the_unet_is_in_the_table_and_no_other(key):
    table = {module.path: module for module in MODELS[key].components["unet"]}
    held = layers(unet(key))
    # A shortcut is there only where the width changes, which it does nowhere in this small model but on the way up.
    optional = {name for name in table if name.endswith("conv_shortcut")}
    assert held.keys() <= table.keys()
    assert table.keys() - held.keys() <= optional
    for name, layer in held.items():
        kernel = tuple(layer.kernel_size) if isinstance(layer, nn.Conv2d) else None
        assert table[name].kernel == kernel, name


def test_every_layer_of_flux_is_in_the_table_and_no_other():
    table = {module.path for module in MODELS["flux"].components["transformer"]}
    assert table == layers(flux()).keys()


def state(names, shapes, generator):
    tensors = {}
    for name in names:
        rows, columns, kernel = shapes(name)
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, columns, *(kernel or ()), generator=generator)
        ones = (1,) * len(kernel or ())
        tensors[f"{name}.lora_up.weight"] = torch.randn(rows, 2, *ones, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(0.5)
    return tensors


def deltas(state_dict):
    """Return component and path -> B A of a state dict as diffusers has converted it, in float64."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    found = {}
    peft = {k: v for k, v in state_dict.items() if "lora_A" in k or "lora_B" in k}
    if not peft:
        peft = convert_unet_state_dict_to_peft(state_dict)
    for key, a in peft.items():
        if ".lora_A." not in key:
            continue
        site = key.partition(".lora_A.")[0].replace(".processor", "")
        b = peft[key.replace(".lora_A.", ".lora_B.")]
        found[site] = b.double().flatten(1) @ a.double().flatten(1)
    return found


@pytest.mark.parametrize("key", ["sd1", "sdxl"])
def test_kohyas_unet_names_are_those_that_diffusers_converts(key, tmp_path):
    from safetensors.torch import save_file

    first = next(iter(MODELS[key].namings["kohya"]["unet"]))
    modules = {first.name(module): module for module in MODELS[key].components["unet"]}
    names = list(modules)
    generator = torch.Generator().manual_seed(0)
    tensors = state(names, lambda name: (3, 4, modules[name].kernel), generator)
    save_file(tensors, tmp_path / "a.safetensors")
    loader = diffusers.loaders.lora_pipeline
    mixin = loader.StableDiffusionXLLoraLoaderMixin if key == "sdxl" else loader.StableDiffusionLoraLoaderMixin
    result = mixin.lora_state_dict(dict(tensors), unet_config=unet(key).config)
    theirs = deltas({k: v for k, v in result[0].items() if k.startswith("unet.")})
    ours = load(tmp_path / "a.safetensors").updates
    assert len(ours) == len(names)
    assert theirs.keys() == ours.keys()
    for site, update in ours.items():
        torch.testing.assert_close(update.dense().double(), theirs[site] * 0.25, rtol=0, atol=1e-6)


def test_kohyas_names_of_flux_are_those_that_diffusers_converts(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    # diffusers has the width of Flux in its code: 3072, and 4 of it for the MLP.
    width = 3072
    rows = {"qkv": 3, "linear1": 7, "_0": 4, "mod_lin": 6, "modulation_lin": 3, "adaLN_modulation_1": 2}
    names = [
        *(
            f"lora_unet_double_blocks_0_{part}_{name}"
            for part in ("img", "txt")
            for name in ("attn_qkv", "attn_proj", "mlp_0", "mlp_2", "mod_lin")
        ),
        *(f"lora_unet_single_blocks_37_{name}" for name in ("linear1", "linear2", "modulation_lin")),
    ]

    def shape(name):
        times = next((n for end, n in rows.items() if name.endswith(end)), 1)
        return times * width, width, None

    tensors = state(names, shape, torch.Generator().manual_seed(0))
    save_file(tensors, tmp_path / "a.safetensors")
    theirs = diffusers.loaders.lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(dict(tensors))
    tangora_adapter = load(tmp_path / "a.safetensors")
    tangora_adapter.save(tmp_path / "b.safetensors", format="diffusers")
    ours = load(tmp_path / "b.safetensors").updates
    sites = {key.partition(".lora_A.")[0] for key in theirs if ".lora_A." in key}
    assert sites == ours.keys()
    for site, update in ours.items():
        x = torch.randn(update.shape[1], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        mine = update.factors()
        b, a = (theirs[f"{site}.lora_{part}.weight"].double() for part in "BA")
        y = mine.b.double() @ (mine.a.double() @ x)
        torch.testing.assert_close(y, b @ (a @ x), rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def small():
    """A UNet with the names of Stable Diffusion 1, and weights."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**SMALL)


SITES = ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.conv1", "conv_in"]


def loaded(model, name="default"):
    return {n: m.get_delta_weight(name) for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}


def test_what_is_written_is_what_diffusers_loads(small, tmp_path):
    generator = torch.Generator().manual_seed(0)
    updates, kernels = {}, {}
    for rank, site in enumerate(SITES, start=1):
        weight = small.get_submodule(site).weight
        columns = weight[0].numel()
        b, a = torch.randn(len(weight), rank, generator=generator), torch.randn(rank, columns, generator=generator)
        updates[f"unet.{site}"] = LowRank(b, a, 0.3)
        if weight.ndim > 2:
            kernels[f"unet.{site}"] = tuple(weight.shape[1:])
    adapter = Adapter(updates).with_details(kernels=kernels)
    tangora.fuse([adapter], weights=[0.7]).save(tmp_path / "a.safetensors", format="diffusers")
    result = diffusers.loaders.lora_pipeline.StableDiffusionLoraLoaderMixin.lora_state_dict(
        tmp_path / "a.safetensors", unet_config=small.config, local_files_only=True
    )
    small.load_lora_adapter(result[0], network_alphas=result[1], adapter_name="fused", prefix="unet")
    theirs = loaded(small, "fused")
    small.delete_adapters("fused")
    assert theirs.keys() == set(SITES)
    for site, delta in theirs.items():
        expected = updates[f"unet.{site}"].dense() * 0.7
        torch.testing.assert_close(delta.flatten(1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_diffusers_saves_is_read(small, tmp_path, rslora):
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=6, target_modules=SITES, rank_pattern={"conv_in": 2}, use_rslora=rslora)
    small.add_adapter(config, "own")
    for name, parameter in small.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    small.save_lora_adapter(tmp_path, adapter_name="own")
    theirs = loaded(small, "own")
    small.delete_adapters("own")
    ours = load(tmp_path / "pytorch_lora_weights.safetensors")
    assert "sd1" in ours.details.file.models
    assert ours.updates.keys() == {f"unet.{site}" for site in SITES} == {f"unet.{site}" for site in theirs}
    for site, delta in theirs.items():
        torch.testing.assert_close(ours.updates[f"unet.{site}"].dense(), delta.flatten(1), rtol=1e-5, atol=1e-6)
