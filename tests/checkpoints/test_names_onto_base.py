"""Which tensor of a base an adapter's site is, by names, shapes and classes; what may be several is refused."""

from __future__ import annotations

import json
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tangora.checkpoints import fuse_checkpoints
from tangora.errors import FusionError

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = {"image_size": 8, "patch_size": 4}


def made(name, config):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return (kind(config=config) if name == "EncoderDecoderModel" else kind(config)).eval()


def text(kind="Bert", **more):
    return getattr(transformers, f"{kind}Config")(**SIZES, vocab_size=32, **more)


def seen(kind="ViT", **more):
    return getattr(transformers, f"{kind}Config")(**SIZES, **SEEN, **more)


def adapted(model, folder, seed, **settings):
    """A stock peft adapter with random factors; return the model with it merged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 2, "lora_alpha": 4, **settings}))
    draw = torch.Generator().manual_seed(seed)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload()


def config_of(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def twin(**more):
    return {"text_config": text("SiglipText", **more).to_dict(), "vision_config": seen("SiglipVision").to_dict()}


def llava():
    return transformers.LlavaConfig(text_config=text("Llama"), vision_config=seen("CLIPVision"), image_token_index=31)


def gpt2(**more):
    return transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, **more)


def pair(encoder, decoder):
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return config


CLASSES = {
    "bert": ("BertForSequenceClassification", lambda: text(), ["query", "value", "dense"]),
    "llama": ("LlamaForCausalLM", lambda: text("Llama"), ["q_proj", "down_proj"]),
    "vit": ("ViTForImageClassification", lambda: seen(), ["q_proj", "fc1"]),
    "deit": ("DeiTForImageClassification", lambda: seen("DeiT"), ["q_proj", "fc1"]),
    "dinov2": ("Dinov2Model", lambda: seen("Dinov2"), ["q_proj", "fc1"]),
    "siglip": ("SiglipModel", lambda: transformers.SiglipConfig(**twin()), ["q_proj", "fc1"]),
    "llava": ("LlavaForConditionalGeneration", llava, ["q_proj", "linear_1"]),
    "gpt2": ("GPT2LMHeadModel", lambda: gpt2(), ["c_attn", "c_proj"]),
    "bert and gpt2": (
        "EncoderDecoderModel",
        lambda: pair(text(), gpt2(add_cross_attention=True, is_decoder=True)),
        ["query", "value", "c_proj", "q_attn"],
    ),
    "bert twice": (
        "EncoderDecoderModel",
        lambda: pair(text(), text(add_cross_attention=True, is_decoder=True)),
        ["query", "value"],
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_an_adapter_onto_its_own_base_is_what_peft_merges(tmp_path, name):
    """Names in memory are not those in the file; square weights of both kinds stand in one model."""
    kind, config, targets = CLASSES[name]
    made(kind, config()).save_pretrained(tmp_path / "base")
    merged = adapted(made(kind, config()), tmp_path / "a", 1, target_modules=targets).state_dict()
    fuse_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", weights=1.0)
    found = getattr(transformers, kind).from_pretrained(tmp_path / "out").state_dict()
    before = made(kind, config()).state_dict()
    assert any(not torch.equal(merged[key], before[key]) for key in before)
    for key, value in merged.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5, msg=key)


def changed(out, base):
    after, before = (load_file(folder / "model.safetensors") for folder in (out, base))
    return {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("tower", ["Text", "Vision"])
def test_a_towers_adapter_changes_its_tower(tmp_path, tower, dora):
    made("SiglipModel", transformers.SiglipConfig(**twin())).save_pretrained(tmp_path / "base")
    model = getattr(transformers, f"Siglip{tower}Model").from_pretrained(tmp_path / "base")
    adapted(model, tmp_path / "a", 1, target_modules=["q_proj"], use_dora=dora)
    fuse_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", weights=1.0)
    assert changed(tmp_path / "out", tmp_path / "base") == {f"{tower.lower()}_model"}


def test_what_may_be_either_tower_is_refused_and_both_are_named(tmp_path):
    made("SiglipModel", transformers.SiglipConfig(**twin())).save_pretrained(tmp_path / "base")
    adapted(made("SiglipVisionModel", seen("SiglipVision")), tmp_path / "a", 1, target_modules=["q_proj"])
    config_of(tmp_path / "a", auto_mapping=None)
    with pytest.raises(FusionError, match=r"may be any of several.*text_model\..*vision_model\."):
        fuse_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", weights=1.0)
    assert not (tmp_path / "out").exists()


def test_shapes_decide_between_towers(tmp_path):
    wide = {**twin(), "text_config": {**text("SiglipText").to_dict(), "hidden_size": 32}}
    made("SiglipModel", transformers.SiglipConfig(**wide)).save_pretrained(tmp_path / "base")
    adapted(made("SiglipVisionModel", seen("SiglipVision")), tmp_path / "a", 1, target_modules=["q_proj"])
    config_of(tmp_path / "a", auto_mapping=None)
    fuse_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", weights=1.0)
    assert changed(tmp_path / "out", tmp_path / "base") == {"vision_model"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_two_names_of_one_tensor_are_one_site(tmp_path, order, method):
    """A classifier's adapter and an encoder's, onto the encoder: both act, in either order."""
    made("BertModel", text()).save_pretrained(tmp_path / "base")
    before = load_file(tmp_path / "base" / "model.safetensors")
    both = [("BertForSequenceClassification", ["query", "value"]), ("BertModel", ["query", "key"])]
    folders, deltas = [], []
    for seed, (kind, targets) in enumerate(both):
        folders.append(tmp_path / kind)
        merged = adapted(made(kind, text()), folders[-1], seed, target_modules=targets).state_dict()
        fuse_checkpoints(tmp_path / "base", folders[-1:], tmp_path / f"one{seed}", weights=1.0)
        one = load_file(tmp_path / f"one{seed}" / "model.safetensors")
        deltas.append({key: one[key] - before[key] for key in before})
        site = "encoder.layer.1.attention.self.query.weight"
        prefix = "bert." if "Classification" in kind else ""
        start = made(kind, text()).state_dict()
        torch.testing.assert_close(deltas[-1][site], merged[prefix + site] - start[prefix + site], rtol=0, atol=1e-6)
    fuse_checkpoints(tmp_path / "base", [folders[i] for i in order], tmp_path / "out", method, weights=1.0)
    found = load_file(tmp_path / "out" / "model.safetensors")
    if method == "task_arithmetic":
        for key, value in before.items():
            torch.testing.assert_close(found[key], value + deltas[0][key] + deltas[1][key], rtol=0, atol=1e-5)
    for name in ("query", "key", "value"):
        assert not torch.equal(*(t[f"encoder.layer.0.attention.self.{name}.weight"] for t in (found, before)))


def test_a_square_weight_of_an_unknown_class_is_refused_if_some_layers_are_transposed(tmp_path):
    made("GPT2LMHeadModel", gpt2()).save_pretrained(tmp_path / "base")
    adapted(made("GPT2LMHeadModel", gpt2()), tmp_path / "a", 1, target_modules=["c_proj"], fan_in_fan_out=True)
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "mine", "architectures": ["Mine"]}))
    with pytest.raises(FusionError, match="the kind of this layer is not known"):
        fuse_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", weights=1.0)
