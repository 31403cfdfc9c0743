from __future__ import annotations

import json

import pytest
import torch

from folders import CONFIG, SHAPES, save, tensors
from tangora.errors import ArgumentError, FileError
from tangora.storage.checkpoint import open_checkpoint


def test_shards_do_not_change_what_a_checkpoint_is(tmp_path):
    weights = tensors()
    one, three = open_checkpoint(save(tmp_path / "a", weights)), open_checkpoint(save(tmp_path / "b", weights, 3))
    assert one.tensors.keys() == three.tensors.keys() == SHAPES.keys()
    assert len(three.files) == 3
    assert one.fingerprint == three.fingerprint
    weights["lm_head.weight"][-1, -1] += 1
    assert open_checkpoint(save(tmp_path / "c", weights)).fingerprint != one.fingerprint


def test_the_fingerprint_samples_large_tensors(tmp_path):
    large = {"w": torch.zeros(100, 1000)}
    first = open_checkpoint(save(tmp_path / "a", large)).fingerprint
    large["w"][50, 0:3] = 1  # the middle
    assert open_checkpoint(save(tmp_path / "b", large)).fingerprint != first


def index(folder, table):
    """Write an index, which counts only without ``model.safetensors``."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0b"])
def test_an_index_may_only_name_files_beside_it(tmp_path, name):
    folder = save(tmp_path / "a", tensors())
    save(tmp_path, tensors())
    index(folder, dict.fromkeys(SHAPES, name))
    with pytest.raises(FileError, match="outside the folder"):
        open_checkpoint(folder)


def test_links_that_lead_out(tmp_path):
    folder, other = save(tmp_path / "a", tensors()), save(tmp_path / "b", tensors())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(other / "model.safetensors")
    with pytest.raises(FileError, match="leads out"):
        open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(FileError):
        open_checkpoint(folder)


def test_the_hubs_cache_is_made_of_links(tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    save(snapshot, tensors())
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    assert open_checkpoint(snapshot).tensors.keys() == SHAPES.keys()


def test_refusals(tmp_path):
    with pytest.raises(FileError, match="no such folder"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArgumentError, match="--base"):
        open_checkpoint(tmp_path / "adapter")
    folder = save(tmp_path / "a", tensors())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileError, match="pickle"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(FileError, match="no checkpoint here"):
        open_checkpoint(folder)
    damaged = save(tmp_path / "b", tensors())
    (damaged / "config.json").write_text("[")
    with pytest.raises(FileError, match="JSON"):
        open_checkpoint(damaged)


@pytest.mark.parametrize("table", [{}, [], {"a": 1}, None])
def test_bad_indices(tmp_path, table):
    folder = save(tmp_path / "a", tensors())
    index(folder, table)
    with pytest.raises(FileError, match="weight_map"):
        open_checkpoint(folder)


def test_index_and_shards_must_agree(tmp_path):
    folder = save(tmp_path / "a", tensors(), 2)
    path = folder / "model.safetensors.index.json"
    table = json.loads(path.read_text())["weight_map"]
    table["ghost"] = table["lm_head.weight"]
    index(folder, table)
    with pytest.raises(FileError, match="disagree on a tensor, got 'ghost'"):
        open_checkpoint(folder)
    index(folder, {"x": "model-00009-of-00009.safetensors"})
    with pytest.raises(FileError, match="file not found"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("ties", "stored", "tied"),
    [(True, False, True), (True, True, True), (None, False, True), (None, True, False), (False, True, False)],
)
def test_tied_weights(tmp_path, ties, stored, tied):
    weights = tensors()
    if not stored:
        del weights["lm_head.weight"]
    config = {**CONFIG, "tie_word_embeddings": ties} if ties is not None else {"model_type": "llama"}
    checkpoint = open_checkpoint(save(tmp_path / "a", weights, config=config))
    found = checkpoint.find("lm_head.weight")
    assert (found is not None and found.name == "model.embed_tokens.weight") == tied
