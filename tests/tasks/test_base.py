from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, SiglipConfig, SiglipModel

import tiny
from tangora.config.recipe import BaseConfig
from tangora.errors import FileError, ModelError
from tangora.tasks import load_base


def _config(family, model, **settings):
    return BaseConfig(family=family, model=str(model), **settings)


@pytest.mark.parametrize("name", ["text_base", "image_base", "answer_base"])
def test_a_base_is_frozen_in_float32_and_in_evaluation_mode(name, request):
    base = request.getfixturevalue(name)
    assert {p.dtype for p in base.backbone.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in base.backbone.parameters())
    assert not any(m.training for m in base.backbone.modules())


def test_fingerprint_is_of_the_weights(tiny_bert, text_base, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_bert, copy)
    assert load_base(_config("text-zero-shot", copy)).fingerprint == text_base.fingerprint
    weights = load_file(copy / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][0, 0] += 1e-6
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert load_base(_config("text-zero-shot", copy)).fingerprint != text_base.fingerprint


def test_image_backbone_is_the_vision_tower_of_the_checkpoint(tiny_clip, image_base):
    whole = AutoModel.from_pretrained(tiny_clip)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole.visual_projection(whole.vision_model(pixels).pooler_output)
        found = image_base.backbone(pixel_values=pixels).image_embeds
    assert torch.equal(found, expected)
    assert image_base.scale == pytest.approx(whole.logit_scale.exp().item())


def test_scale_of_the_recipe_wins(tiny_clip, tiny_bert):
    assert load_base(_config("image-zero-shot", tiny_clip, scale=7)).scale == 7
    assert load_base(_config("text-zero-shot", tiny_bert)).scale == 20


def test_text_tower_is_clips(tiny_clip, image_base):
    whole = AutoModel.from_pretrained(tiny_clip)
    ids = torch.tensor([[1, 4, 3, 0], [1, 4, 5, 3]])  # red; red green
    with torch.no_grad():
        output = whole.text_model(input_ids=ids, attention_mask=(ids > 0).long())
        expected = whole.text_projection(output.pooler_output)
    torch.testing.assert_close(image_base.text.embed(["red", "red green"]), expected)


def test_siglip(tiny_clip, tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = len(tiny.WORDS) + 4
    text = {**shape, "vocab_size": words, "max_position_embeddings": 8, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8})
    shutil.copytree(tiny_clip, tmp_path / "siglip")
    torch.manual_seed(0)
    model = SiglipModel(config).eval()
    model.save_pretrained(tmp_path / "siglip")
    base = load_base(_config("image-zero-shot", tmp_path / "siglip"))
    ids = torch.tensor([[1, 4, 3, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(base.text.embed(["red"]), model.text_model(input_ids=ids).pooler_output)
        pixels = torch.rand(1, 3, 32, 32)
        expected = model.vision_model(pixels).pooler_output
        torch.testing.assert_close(base.backbone(pixel_values=pixels).pooler_output, expected)


def test_builtin_model_is_made_on_demand(monkeypatch, tiny_clip, image_base):
    monkeypatch.setattr("tangora.quickstart.encoder", lambda: tiny_clip, raising=False)
    assert load_base(_config("image-zero-shot", "builtin:quickstart")).fingerprint == image_base.fingerprint


@pytest.mark.parametrize("family", ["text-zero-shot", "image-zero-shot", "text-to-text"])
def test_missing_folder(family, tmp_path):
    with pytest.raises(FileError, match=r"folder is not found at .*absent\. Check base\.model"):
        load_base(_config(family, tmp_path / "absent"))


def test_unknown_hub_id_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(_config("text-zero-shot", "nobody/nothing-at-all"))


def test_pickled_weights_are_refused(tiny_bert, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileError, match="only pickled weights, which are refused"):
        load_base(_config("text-zero-shot", folder))


def test_truncated_weights(tiny_bert, tmp_path):
    folder = tmp_path / "short"
    shutil.copytree(tiny_bert, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(FileError, match="weights are not readable"):
        load_base(_config("text-zero-shot", folder))


def test_missing_weights_are_not_drawn_at_random(tiny_bert, tmp_path):
    folder = tmp_path / "incomplete"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*encoder\.layer\.1\.output\.dense\.weight"):
        load_base(_config("text-zero-shot", folder))


def test_a_sentence_encoder_may_lack_its_pooler(tiny_bert, text_base, tmp_path):
    folder = tmp_path / "headless"
    shutil.copytree(tiny_bert, folder)
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("pooler")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert load_base(_config("text-zero-shot", folder)).fingerprint == text_base.fingerprint


def test_a_model_of_another_family(tiny_t5, tiny_bert):
    with pytest.raises(ModelError, match="needs an encoder, got 'T5"):
        load_base(_config("text-zero-shot", tiny_t5))
    with pytest.raises(ModelError, match="no image tower for this kind of model, got 'bert'"):
        load_base(_config("image-zero-shot", tiny_bert))
    with pytest.raises(ModelError, match=r"cannot be loaded .*fits the family text-to-text"):
        load_base(_config("text-to-text", tiny_bert))


def test_no_tokenizer_beside_the_weights(tiny_clip, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(tiny_clip, folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(_config("image-zero-shot", folder))
