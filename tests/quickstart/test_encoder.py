"""The tiny CLIP: deterministic, loadable by transformers' Auto classes, cached whole, and better than chance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

import tangora
from tangora import quickstart
from tangora.config.recipe import load_recipe
from tangora.errors import OutputError
from tangora.progress import Progress
from tangora.quickstart import cache, model, training
from tangora.quickstart.training import PretrainingSettings

pytestmark = pytest.mark.drawn

TINY = PretrainingSettings(
    width=32, layers=1, patch=16, projection=16, steps=150, batch_size=64, learning_rate=5e-3, warmup=5
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int, float]]]:
    """One cached tiny encoder and what its progress callback heard."""
    heard: list[tuple[int, int, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANGORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = quickstart.encoder(lambda *step: heard.append(step), TINY)
    return folder, heard


@pytest.fixture
def cached(made, monkeypatch) -> Path:
    monkeypatch.setenv("TANGORA_CACHE", str(made[0].parent))
    return made[0]


def zero_shot(folder: Path, name: str) -> float:
    encoder, words = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = quickstart.load(name)["test"]
    prompts = words([f"a photo of a {label}" for label in quickstart.labels(name)], padding=True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(folder)(
        [Image.fromarray(i) for i in rows["image"]], return_tensors="pt"
    )
    with torch.no_grad():
        logits = encoder(pixel_values=pixels["pixel_values"], **prompts).logits_per_image
    return float((logits.argmax(-1).numpy() == rows["label"]).mean())


def test_progress_counts_every_step_and_the_loss_falls(made):
    heard = made[1]
    assert [(step, steps) for step, steps, _ in heard] == [(i + 1, TINY.steps) for i in range(TINY.steps)]
    assert np.mean([loss for *_, loss in heard[-5:]]) < 0.8 * heard[0][2]


def test_even_the_smallest_one_is_above_chance(cached):
    above = [zero_shot(cached, name) - 1 / len(quickstart.labels(name)) for name in quickstart.names()]
    assert np.mean(above) > 0.1


def test_the_image_processor_does_what_pretraining_did(cached):
    image = quickstart.load("photos")["test"]["image"][0]
    pixels = AutoImageProcessor.from_pretrained(cached)(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    expected = (torch.from_numpy(image).permute(2, 0, 1) / 255 - model.PIXEL_MEAN) / model.PIXEL_STD
    torch.testing.assert_close(pixels, expected)


def test_the_tokenizer_frames_lowers_and_knows_what_it_does_not_know(cached):
    words = AutoTokenizer.from_pretrained(cached)
    ids = words("A photo of a zebra")["input_ids"]
    assert words.convert_ids_to_tokens(ids) == ["<start>", "a", "photo", "of", "a", "<unk>", "<end>"]
    assert words.pad_token_id == 0
    assert words.eos_token_id != 2


def test_padding_does_not_change_a_text_feature(cached):
    """The end token is found, not the last position: prompts of different lengths can share a batch."""
    encoder, words = CLIPModel.from_pretrained(cached).eval(), AutoTokenizer.from_pretrained(cached)
    with torch.no_grad():
        alone = encoder.get_text_features(**words(["a cat"], return_tensors="pt")).pooler_output
        padded = words(["a cat", "a small image of a cat"], padding=True, return_tensors="pt")
        together = encoder.get_text_features(**padded).pooler_output
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_the_same_settings_give_the_same_weights_and_leave_the_global_generator_alone():
    short = replace(TINY, steps=2)
    torch.manual_seed(11)
    first = training.pretrain(short)[0].state_dict()
    after = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(1), after)
    second = training.pretrain(short)[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = training.pretrain(replace(short, seed=1))[0].state_dict()
    assert not torch.equal(first["visual_projection.weight"], other["visual_projection.weight"])


def test_a_second_call_reads_the_cache(cached, monkeypatch):
    monkeypatch.setattr(cache, "pretrain", lambda *_: pytest.fail("pretrained again"))
    assert quickstart.encoder(settings=TINY) == cached


@pytest.mark.parametrize(
    "change", [{"settings": replace(TINY, seed=1)}, {"version": 99}, {"captions": ["another caption"]}]
)
def test_whatever_decides_the_weights_is_in_the_key(change, monkeypatch):
    before = cache._key(TINY)
    assert cache._key(replace(TINY)) == before
    monkeypatch.setattr(cache, "_CODE_VERSION", change.get("version", cache._CODE_VERSION))
    images, captions = quickstart.pretraining()
    monkeypatch.setattr(cache, "pretraining", lambda: (images, change.get("captions", captions)))
    assert cache._key(change.get("settings", TINY)) != before


@pytest.mark.parametrize("damage", ["truncated", "removed", "record"])
def test_a_damaged_entry_is_made_again(made, damage, tmp_path, monkeypatch):
    monkeypatch.setenv("TANGORA_CACHE", str(tmp_path))
    short = replace(TINY, steps=1)
    folder = quickstart.encoder(settings=short)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(whole[:-100])
    elif damage == "removed":
        weights.unlink()
    else:
        (folder / cache._RECORD).write_text(json.dumps({}))
    assert quickstart.encoder(settings=short) == folder
    assert weights.read_bytes() == whole


def test_a_killed_pretraining_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TANGORA_CACHE", str(tmp_path))

    def stop(step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quickstart.encoder(stop, TINY)
    assert list(tmp_path.rglob("*")) == []


def test_a_cache_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TANGORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written"):
        quickstart.encoder(settings=replace(TINY, steps=1))


def test_the_cache_is_the_users_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("TANGORA_CACHE", str(tmp_path))
    assert quickstart.cache_folder() == tmp_path
    monkeypatch.delenv("TANGORA_CACHE")
    assert quickstart.cache_folder().name == "tangora"


def test_the_bundled_recipe_runs_whole(cached, monkeypatch, tmp_path, capsys):
    """With fewer steps, and the smaller model, whose making it tells when there is none."""
    monkeypatch.setattr(cache, "PretrainingSettings", lambda: replace(TINY, steps=3))
    monkeypatch.setenv("TANGORA_CACHE", str(tmp_path / "cache"))
    heard: list[tuple[str, int]] = []

    class Listener(Progress):
        def begin(self, label: str, total: int) -> None:
            heard.append((label, total))

    settings = ["training.steps=2", "evaluation.bootstrap=100", "fusion.subsets.sizes=[3]"]
    settings += ["fusion.methods.polished.polish.steps=20"]
    out = tangora.run(load_recipe("quickstart", settings), tmp_path / "run", progress=Listener())
    assert heard[0] == ("pretrain the built-in model", 3)
    modes = {row["mode"] for row in json.loads((out / "summary.json").read_text())["rows"]}
    assert modes == set(load_recipe("quickstart", []).modes)
    assert (out / "report.html").stat().st_size > 10_000
