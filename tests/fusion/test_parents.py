"""The names of what is fused, and whether a base is the one that the adapters name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import folders
import toys
from tangora.adapters.metadata import BaseInfo
from tangora.checkpoints import fuse_checkpoints
from tangora.errors import FusionError
from tangora.fusion.fusion import Fusion, fuse

CACHE = "hub/models--org--chat/snapshots/0123"
HEAD = {"modules_to_save": ["head"]}


def checkpoints(root: Path, **metadata) -> list[Path]:
    """Write the last checkpoints of two runs."""
    places = [root / run / "checkpoint-500" for run in ("run1", "run2")]
    for seed, place in enumerate(places):
        adapter = toys.lora(seed, **metadata)
        details = {"config": {"peft_type": "LORA", **HEAD}}
        whole = {"head.weight": torch.full((2, 2), float(seed))}
        replace(adapter.with_details(**details), whole=whole).save(place)
    return places


NAMES = ["run1/checkpoint-500", "run2/checkpoint-500"]


def test_equal_folder_names(tmp_path):
    fused = fuse(checkpoints(tmp_path), heads="keep")
    assert [parent.name for parent in fused.metadata.fused.parents] == NAMES
    assert sorted(fused.heads) == [name.replace("/", "_") for name in NAMES]
    other = checkpoints(tmp_path / "other", base=BaseInfo(model="org/other"))[1]
    with pytest.raises(
        FusionError, match=r"different bases: run1/checkpoint-500 has .*, other/run2/checkpoint-500 has"
    ):
        fuse([tmp_path / NAMES[0], tmp_path / NAMES[1], other])


def test_equal_names_of_checkpoints(tmp_path):
    base, models, *_ = folders.family(tmp_path, 2)
    places = [tmp_path / name for name in NAMES]
    for model, place in zip(models, places, strict=True):
        place.parent.mkdir()
        model.rename(place)
    assert fuse_checkpoints(base, places, tmp_path / "out").parents == NAMES
    record = json.loads((tmp_path / "out" / "tangora_fusion.json").read_text())
    assert [parent["name"] for parent in record["parents"]] == NAMES
    config = {**folders.CONFIG, "num_attention_heads": 3}
    (places[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(FusionError, match="run2/checkpoint-500 has another architecture"):
        fuse_checkpoints(base, places, tmp_path / "other")


def test_adapters_in_memory_are_numbered():
    assert Fusion([toys.lora(1), toys.lora(2)]).names == ["task1", "task2"]
    assert Fusion([toys.lora(1), toys.lora(1)]).names == ["task1", "task1 (2)"]


@pytest.mark.parametrize(
    ("place", "stated", "made_for", "fits"),
    [
        (CACHE, "org/pretrained", "org/chat", True),
        (CACHE, "org/pretrained", "org/pretrained", False),  # what the model was tuned from
        (CACHE, None, "org/other", False),
        (CACHE, None, "/home/me/" + CACHE, True),
        ("chat", "org/pretrained", "org/chat", True),
        ("base", "org/chat", "/home/me/" + CACHE, True),
        ("base", "org/pretrained", "org/chat", False),
    ],
)
def test_the_hubs_cache_names_the_base(tmp_path, place, stated, made_for, fits):
    weights = {f"{site}.weight": torch.zeros(update.shape) for site, update in toys.lora(1).updates.items()}
    config = {**folders.CONFIG, **({"_name_or_path": stated} if stated else {})}
    base = folders.save(tmp_path / place, weights, config=config)
    toys.lora(1, base=BaseInfo(model=made_for)).save(tmp_path / "a")
    if fits:
        fuse_checkpoints(base, [tmp_path / "a"], tmp_path / "out")
        record = json.loads((tmp_path / "out" / "tangora_fusion.json").read_text())
        assert record["base"]["model"] == ("org/chat" if place == CACHE else stated)
        return
    with pytest.raises(FusionError, match=f"was made for {made_for}, the base given is "):
        fuse_checkpoints(base, [tmp_path / "a"], tmp_path / "out")


def test_a_base_in_the_cache_is_the_base_of_that_name():
    one, other = (toys.lora(i, base=BaseInfo(model=m)) for i, m in enumerate(("org/chat", "/home/me/" + CACHE)))
    assert fuse([one, other]).updates
    with pytest.raises(FusionError, match="different bases"):
        fuse([one, toys.lora(3, base=BaseInfo(model="/home/me/" + CACHE.replace("chat", "other")))])


@pytest.mark.parametrize(
    ("place", "same_base", "said"), [("moved", False, True), ("moved", True, False), ("chat", False, False)]
)
def test_a_base_without_a_name_may_be_another(tmp_path, place, same_base, said):
    weights = {f"{site}.weight": torch.zeros(update.shape) for site, update in toys.lora(1).updates.items()}
    base = folders.save(tmp_path / place, weights, config=folders.CONFIG)
    toys.lora(1, base=BaseInfo(model="org/chat")).save(tmp_path / "a")
    notes = fuse_checkpoints(base, [tmp_path / "a"], tmp_path / "out", same_base=same_base).notes
    assert notes == (["a was made for org/chat: it is not known if moved has the same weights"] if said else [])
