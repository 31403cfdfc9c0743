"""Heads and records of checkpoints, which earlier merges of adapters have left in ``heads/``, and the notes on them."""

from __future__ import annotations

import json
import shutil

import pytest

import tangora
from tangora.adapters.heads import heads_digest, read_heads, read_records
from tangora.checkpoints.recorded_heads import brought_along


@pytest.fixture(scope="module")
def merged(families, tmp_path_factory):
    """Kind -> a checkpoint with the head of one task; and the adapter."""
    home, made = tmp_path_factory.mktemp("merged"), {}
    for kind in ("head", "text"):
        adapter = families[kind].trained("lora", home / f"{kind}-adapter")
        tangora.fuse_checkpoints(families[kind].base.config.model, [adapter], home / kind, weights=1.0)
        made[kind] = home / kind
    return made


def test_what_the_checkpoints_agree_on_is_kept(families, merged, tmp_path):
    base = families["head"].base.config.model
    done = tangora.fuse_checkpoints(base, [merged["head"], merged["head"]], tmp_path / "out", weights=0.5)
    assert heads_digest(read_heads(tmp_path / "out")) == heads_digest(read_heads(merged["head"]))
    assert read_records(tmp_path / "out") == read_records(merged["head"])
    assert not any("heads/" in note for note in done.notes)
    again = tangora.fuse_checkpoints(merged["head"], [base], tmp_path / "again", weights=0.5)
    assert read_records(tmp_path / "again").keys() == {"grades"}, "those of the base are kept too"
    assert not any("heads/" in note for note in again.notes)


def test_what_they_differ_in_is_left_out_and_listed(families, merged, tmp_path):
    other = shutil.copytree(merged["head"], tmp_path / "other")
    record = other / "heads" / "grades.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"labels": ["1", "2", "3"]}))
    base = families["head"].base.config.model
    done = tangora.fuse_checkpoints(base, [merged["head"], other], tmp_path / "out", weights=0.5)
    assert "heads/grades is left out: the checkpoints differ in it" in done.notes
    assert not (tmp_path / "out" / "heads").exists()
    named = tangora.fuse_checkpoints(merged["text"], [merged["text"]], tmp_path / "named", weights=0.5)
    assert "heads/colors is left out: its class names were embedded by another base" in named.notes
    assert not (tmp_path / "named" / "heads").exists()


def test_adapters_come_before_what_their_base_brings_along(families, merged, tmp_path):
    case = families["head"]
    base = tangora.load_base(merged["head"], family="linear-head", pooling="cls", max_length=16)
    other = tmp_path / "other"
    adapter = tangora.finetune(base, case.task, case.config("lora"), out=other, progress=False)
    tangora.fuse_checkpoints(merged["head"], [other], tmp_path / "out", weights=1.0)
    assert heads_digest(read_heads(tmp_path / "out")) == heads_digest(adapter.heads)
    assert heads_digest(adapter.heads) != heads_digest(read_heads(merged["head"]))


def test_a_merge_of_tangent_adapters_says_what_it_is(families, tmp_path):
    case = families["head"]
    folder = case.trained("tangent", tmp_path / "a")
    done = tangora.fuse_checkpoints(case.base.config.model, [folder], tmp_path / "out", weights=1.0)
    assert any("which is another function" in note for note in done.notes)
    assert "which is another function" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_folders_without_heads_need_no_torch(tmp_path):
    assert brought_along([tmp_path, tmp_path]) == ({}, {}, [])
