"""Composed scenes with exact maps, and the tiny Swin that is pretrained for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel

import tangora
from tangora import quickstart
from tangora.errors import DataError
from tangora.quickstart import scenes, tiny_swin
from tangora.quickstart.tiny_swin import SwinSettings

SHORT = SwinSettings(width=8, depths=(1, 1), heads=(1, 2), steps=2, batch_size=4, warmup=1)


def test_scenes_are_the_same_for_every_task_and_every_time():
    first = scenes.load("dense-segmentation")
    for name in scenes.names():
        other = scenes.load(name)
        assert {split: len(rows["image"]) for split, rows in other.items()} == scenes.SCENES
        for split, rows in other.items():
            np.testing.assert_array_equal(rows["image"], first[split]["image"])
            assert rows["label"].shape == (len(rows["image"]), 32, 32)
    first["train"]["image"][:] = 0
    scenes._all.cache_clear()
    again = scenes.load("dense-segmentation")
    assert again["train"]["image"].any()
    # known pixels: another version of NumPy or Python composes the same scenes
    assert again["test"]["label"][:3, 16, ::8].tolist() == KNOWN


KNOWN = [[0, 0, 3, 0], [0, 0, 3, 3], [0, 0, 3, 3]]


def test_every_class_is_in_every_split():
    for rows in scenes.load("dense-segmentation").values():
        shares = np.bincount(rows["label"].ravel(), minlength=4) / rows["label"].size
        assert (shares > 0.03).all()
        assert rows["label"].max() == 3


def test_maps_fit_together():
    maps = {name: scenes.load(name)["test"]["label"] for name in scenes.names()}
    classes, edges, salient, distance = maps.values()
    np.testing.assert_array_equal(salient == 1, (classes == 1) | (classes == 2))
    assert distance.dtype == np.float32
    assert ((distance == 0) == (edges == 1)).all()
    # a pixel beside an edge is one pixel away from it, in units of eight
    beside = (edges[:, :, 1:] == 0) & (edges[:, :, :-1] == 1)
    np.testing.assert_array_equal(distance[:, :, 1:][beside], 1 / 8)
    # where the class changes, one of the two pixels is at a border
    changes = classes[:, :, 1:] != classes[:, :, :-1]
    assert (edges[:, :, :-1][changes] == 1).all()
    assert 0.02 < edges.mean() < 0.3


def test_splits_share_no_scene():
    images = {split: {image.tobytes() for image in rows["image"]} for split, rows in scenes.load("dense-edges").items()}
    assert not images["train"] & images["test"]
    assert not images["train"] & images["validation"]
    assert len(images["train"]) == scenes.SCENES["train"]


def test_an_unknown_task_is_refused():
    with pytest.raises(DataError, match=r"'dense-normals'.*One of dense-segmentation"):
        scenes.load("dense-normals")


def test_the_swin_is_cached_and_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("TANGORA_CACHE", str(tmp_path))
    heard = []
    folder = quickstart.swin(lambda *step: heard.append(step), SHORT)
    assert [step for step, *_ in heard] == [1, 2]
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert model.config.depths == [1, 1]
    pixels = processor(scenes.load("dense-edges")["test"]["image"][0], return_tensors="pt")["pixel_values"]
    image = torch.from_numpy(scenes.load("dense-edges")["test"]["image"][0])
    torch.testing.assert_close(pixels[0], (image.permute(2, 0, 1) / 255 - 0.5) / 0.25)
    monkeypatch.setattr(tiny_swin, "pretrain", lambda *_: pytest.fail("pretrained again"))
    assert quickstart.swin(settings=SHORT) == folder
    base = tangora.load_base(str(folder), family="image-dense", width=8)
    assert base.stages == ((8, 16, 16), (16, 8, 8))
    task = tangora.load_task("edges", base, {"builtin": "dense-edges"}, problem="binary", limit={"train": 8, "test": 8})
    assert len(task.splits["train"]) == 8


def test_the_same_settings_give_the_same_swin_and_leave_the_global_generator_alone():
    torch.manual_seed(11)
    first = tiny_swin.pretrain(SHORT)[0].state_dict()
    after = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(1), after)
    second, other = (tiny_swin.pretrain(one)[0].state_dict() for one in (SHORT, replace(SHORT, seed=1)))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["layernorm.weight"], other["layernorm.weight"])
