"""Adapters of one base under several names: brought together, or refused; never half of a fusion without effect."""

from __future__ import annotations

import json
import shutil
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tangora.adapters.formats.lora.names import PREFIX, unwrapped
from tangora.errors import AdapterError, FusionError
from tangora.fusion.fusion import fuse

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SITE = "model.layers.1.self_attn.q_proj"


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, vocab_size=32))


def llava():
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(**SIZES, image_size=8, patch_size=4)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SIZES, vocab_size=32), vision_config=vision, image_token_index=31
    )
    return transformers.LlavaForConditionalGeneration(config)


def adapted(model, folder, seed=1, **settings):
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, **settings))
    draw = torch.Generator().manual_seed(seed)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    wrapped.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "org/base"}))
    return folder


def renamed(folder, to, rename):
    shutil.copytree(folder, to)
    path = to / "adapter_model.safetensors"
    save_file({rename(key): tensor for key, tensor in load_file(path).items()}, path)
    return to


def in_peft(model, folder, site):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        loaded = peft.PeftModel.from_pretrained(model, folder)
    return loaded.get_base_model().get_submodule(site).get_delta_weight("default").detach()


FORMS = {
    "compiled": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "compiled outside": lambda key: f"_orig_mod.{key}",
    "fsdp": lambda key: key.replace(".self_attn.", "._fsdp_wrapped_module.self_attn."),
    "fsdp and checkpointing": lambda key: key.replace(
        ".self_attn.", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."
    ),
    "ddp": lambda key: key.replace(PREFIX, f"{PREFIX}module."),
    "ddp outside": lambda key: f"module.{key}",
    "compiled ddp": lambda key: key.replace(PREFIX, f"{PREFIX}module._orig_mod."),
    "peft twice": lambda key: PREFIX + key,
    "bare model": lambda key: key.replace(f"{PREFIX}model.", PREFIX),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_wrapped_models_adapter_acts_beside_another(tmp_path, form, first):
    plain = adapted(llama(), tmp_path / "a", target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    other = renamed(plain, tmp_path / "b", FORMS[form])
    both = [plain, other] if first else [other, plain]
    fused = fuse(both, weights=1.0)
    fused.save(tmp_path / "out")
    once = in_peft(llama(), plain, SITE)
    torch.testing.assert_close(in_peft(llama(), tmp_path / "out", SITE), 2 * once, rtol=0, atol=1e-6)


def test_wrappers_are_removed_alone_too(tmp_path):
    plain = adapted(llama(), tmp_path / "a", target_modules=["q_proj"])
    fuse([renamed(plain, tmp_path / "b", FORMS["compiled ddp"])], weights=1.0).save(tmp_path / "out")
    torch.testing.assert_close(in_peft(llama(), tmp_path / "out", SITE), in_peft(llama(), plain, SITE))


def test_two_tensors_that_are_one_without_wrappers_are_refused(tmp_path):
    plain = adapted(llama(), tmp_path / "a", target_modules=["q_proj"])
    path = plain / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, **{f"_orig_mod.{key}": value.clone() for key, value in tensors.items()}}, path)
    with pytest.raises(AdapterError, match="two tensors have one name"):
        fuse([plain], weights=1.0)


def test_modules_of_the_base_keep_their_names():
    for name in ("base_model.model.inner.module.up.lora_A.weight", "base_model.model.my_orig_mod.up.lora_A.weight"):
        assert unwrapped(name) == name


@pytest.mark.parametrize("old_first", [True, False])
def test_old_and_new_names_of_one_module_act_together(tmp_path, old_first):
    targets = r".*language_model.*\.(q_proj|v_proj)"
    new = adapted(llava(), tmp_path / "new", 1, target_modules=targets)
    drawn = adapted(llava(), tmp_path / "drawn", 2, target_modules=targets)
    old = renamed(
        drawn,
        tmp_path / "old",
        lambda key: key.replace("model.model.language_model.", "model.language_model.model."),
    )
    site = "model.language_model.layers.1.self_attn.q_proj"
    fuse([old, new] if old_first else [new, old], weights=1.0).save(tmp_path / "out")
    wanted = in_peft(llava(), new, site) + in_peft(llava(), drawn, site)
    torch.testing.assert_close(in_peft(llava(), tmp_path / "out", site), wanted, rtol=0, atol=1e-6)


def test_names_that_may_be_one_module_are_refused_if_nothing_decides(tmp_path):
    plain = adapted(llama(), tmp_path / "a", target_modules=["q_proj"], task_type="CAUSAL_LM")
    other = renamed(plain, tmp_path / "b", lambda key: key.replace(f"{PREFIX}model.", f"{PREFIX}language_model.model."))
    with pytest.raises(FusionError, match="may be the same modules"):
        fuse([plain, other], weights=1.0)


@pytest.mark.parametrize(("one", "other"), [("encoder.block", "decoder.block"), ("text.layers", "vision.layers")])
def test_different_modules_are_fused_as_they_are(tmp_path, one, other):
    plain = adapted(llama(), tmp_path / "a", target_modules=["q_proj"], task_type="CAUSAL_LM")
    folders = [
        renamed(plain, tmp_path / name, lambda key, name=name: key.replace("model.layers", name))
        for name in (one, other)
    ]
    assert len(fuse(folders, weights=1.0).updates) == 4
