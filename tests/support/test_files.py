"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tangora.errors import FileError, OutputError, RecipeError, TangoraError
from tangora.support.files import (
    atomic_dir,
    atomic_file,
    digest,
    read_json,
    read_safetensors,
    refuse_existing,
    write_json,
    write_safetensors,
    writing,
)


def test_a_folder_appears_only_when_the_block_ends(tmp_path):
    with atomic_dir(tmp_path / "out") as scratch:
        (scratch / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    with atomic_dir(tmp_path / "out") as scratch:
        (scratch / "a").write_text("old")
    with pytest.raises(RuntimeError, match="boom"), atomic_dir(tmp_path / "out") as scratch:
        (scratch / "a").write_text("new")
        raise RuntimeError("boom")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    for name in ("a", "b"):
        with atomic_dir(tmp_path / "out") as scratch:
            (scratch / name).write_text(name)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b"]


def test_existing_output_is_refused_and_kept(tmp_path):
    (tmp_path / "out").mkdir()
    refuse_existing(tmp_path / "out", overwrite=False)  # empty: nothing to lose
    (tmp_path / "out" / "a").write_text("1")
    with pytest.raises(OutputError, match=r"exists.*--overwrite"):
        refuse_existing(tmp_path / "out", overwrite=False)
    with pytest.raises(OutputError), atomic_dir(tmp_path / "out", overwrite=False):
        pytest.fail("the block must not run")
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.json") as scratch:
        scratch.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="disk is full"), atomic_dir(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_inside_safetensors_is_said(tmp_path):
    from safetensors import SafetensorError

    with pytest.raises(OutputError, match="disk is full"), atomic_dir(tmp_path / "out"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "text",
    [
        "basic_ios::clear: iostream error",
        "PytorchStreamWriter failed writing file data/0: file write failed",
        "[enforce fail at inline_container.cc:672] . unexpected pos 8512 vs 8406",
    ],
)
def test_a_full_disk_inside_torch_is_said(tmp_path, text):
    with pytest.raises(OutputError, match="disk is full"), writing(tmp_path):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shapes"), writing(tmp_path):
        raise RuntimeError("shapes differ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_torch_on_a_device_that_is_full(tmp_path):
    with pytest.raises(OutputError, match="disk is full"), writing(tmp_path):
        torch.save({"x": torch.zeros(2**16)}, "/dev/full")


def test_a_full_disk_names_the_place_and_not_the_scratch_one(tmp_path):
    with (
        pytest.raises(OutputError) as caught,
        atomic_dir(tmp_path / "out") as outer,
        atomic_dir(outer) as inner,
        atomic_file(inner / "a.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.where == tmp_path / "out" / "a.json"


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_real_full_disk(tmp_path):
    with pytest.raises(OutputError, match="disk is full"), atomic_dir(tmp_path / "out") as scratch:
        (scratch / "full").symlink_to("/dev/full")
        with (scratch / "full").open("w") as file:
            file.write("x")
            file.flush()
    assert list(tmp_path.iterdir()) == []


def test_an_output_under_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((OutputError, FileExistsError)), atomic_dir(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize("text", ["{", "[1]", "\ufffe", ""])
def test_unreadable_json_names_the_file(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RecipeError, match=r"a\.json"):
        read_json(tmp_path / "a.json", RecipeError)


def test_missing_files_are_named(tmp_path):
    for read in (read_json, read_safetensors):
        with pytest.raises(FileError, match="file not found"):
            read(tmp_path / "absent")


def test_a_truncated_safetensors_is_named(tmp_path):
    save_file({"a": torch.ones(100)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for keep in (0, 4, 20, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:keep])
        with pytest.raises(FileError, match=r"truncated or corrupt"):
            read_safetensors(tmp_path / "cut.safetensors")
    assert torch.equal(read_safetensors(tmp_path / "a.safetensors")["a"], torch.ones(100))


def test_digest_ignores_key_order_and_sees_values():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_messages_say_what_got_where_and_fix():
    error = TangoraError("steps must be positive", got=-1, where="training.steps", fix="give at least 1")
    assert str(error) == "steps must be positive, got -1 at training.steps. Give at least 1"
