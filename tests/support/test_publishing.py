"""Outputs are published in one step; nothing of others is removed; kills lose nothing and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tangora.errors import OutputError
from tangora.support import publishing
from tangora.support.files import atomic_dir, atomic_file, refuse_existing, write_json
from tangora.support.publishing import claimed, discard, remove_claimed, remove_stale_below

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_child(function) -> int:
    """Run a function in a forked process; return the signal that killed it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] & 0x7F


def killed_before_event(number: int, function) -> bool:
    """Run a function in a process that is killed before its file-system event of this number; return whether it was."""
    seen = 0

    def hook(event: str, _arguments: object) -> None:
        nonlocal seen
        if event == "open" or event.startswith(("os.", "shutil.", "ctypes.call", "tempfile.")):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        sys.addaudithook(hook)
        function()
        os._exit(0)

    return in_child(work) == signal.SIGKILL


def write(path: Path, text: str) -> None:
    with atomic_dir(path, record="tangora.json") as folder:
        (folder / "weights").mkdir()
        (folder / "weights" / "a").write_text(text)
        write_json(folder / "tangora.json", {"text": text})


def content(path: Path) -> str:
    """The text of a whole output."""
    text = (path / "weights" / "a").read_text()
    assert json.loads((path / "tangora.json").read_text()) == {"text": text, "files": ["weights/a"]}
    return text


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_kill_before_any_event_leaves_the_old_or_the_new(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:
        monkeypatch.setattr(publishing, "_system_rename", lambda *_, **__: False)
    number, gone = 0, 0
    while True:
        number += 1
        place = tmp_path / str(number)
        write(place / "out", "old")
        if not killed_before_event(number, lambda place=place: write(place / "out", "new")):
            break
        if (place / "out").exists():
            assert content(place / "out") in ("old", "new")
        else:
            gone += 1  # between the two renames
        write(place / "out", "again")
        assert content(place / "out") == "again"
        assert names(place) == ["out"]
    assert content(place / "out") == "new"
    assert number > 20
    assert gone == 0 if in_one_step else gone > 0


def test_what_was_moved_aside_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "_system_rename", lambda *_, **__: False)
    write(tmp_path / "out", "old")
    number = 1
    while (tmp_path / "out").exists():
        assert killed_before_event(number, lambda: write(tmp_path / "out", "new"))
        number += 1
    with pytest.raises(OutputError, match="exists"), atomic_dir(tmp_path / "out", overwrite=False):
        pytest.fail("what was there is there again")
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_a_kill_while_a_file_is_written_leaves_the_old_or_the_new(tmp_path):
    number = 0
    while True:
        number += 1
        write_json(tmp_path / "a.json", "old")
        killed = killed_before_event(number, lambda: write_json(tmp_path / "a.json", "new"))
        assert json.loads((tmp_path / "a.json").read_text()) in ("old", "new")
        if not killed:
            break
    write_json(tmp_path / "a.json", "again")
    assert names(tmp_path) == ["a.json"]
    assert number > 8


def test_a_folder_in_a_scratch_folder_has_no_scratch_folder_of_its_own(tmp_path):
    """It would be left behind by a kill: a scratch folder with something else in it is not taken for one."""

    def write_nested() -> None:
        with atomic_dir(tmp_path / "out", record="tangora.json") as outer:
            write(outer, "new")
            assert names(outer.parent) == [".lock~", "out"]

    number = 1
    while killed_before_event(number, write_nested):
        number += 1
        write(tmp_path / "out", "again")
        assert names(tmp_path) == ["out"]
    assert number > 10
    with atomic_dir(tmp_path / "other") as outer:
        (outer / "a").write_text("x")
        with pytest.raises(OutputError, match="exists"), atomic_dir(outer):
            pytest.fail("what is in it stays")


@pytest.mark.parametrize("name", ["a.json", "n" * 200])
def test_what_killed_writers_left_anywhere_in_a_folder_is_removed(tmp_path, name):
    """Also beside an output that is complete, and so is not written again."""
    number, left = 1, 0
    while True:
        place = tmp_path / str(number) / "deep" / "er"
        place.mkdir(parents=True)
        (place / name).write_text("old")
        if not killed_before_event(number, lambda place=place: write_json(place / name, "new")):
            break
        number, left = number + 1, left + (names(place) != [name])
        remove_stale_below(tmp_path)
        assert names(place) == [name]
    assert left > 5


def test_what_was_moved_aside_deep_in_a_folder_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "_system_rename", lambda *_, **__: False)
    place = tmp_path / "deep" / ("n" * 200)
    write(place, "old")
    number = 1
    while place.exists():
        assert killed_before_event(number, lambda: write(place, "new"))
        number += 1
    remove_stale_below(tmp_path)
    assert content(place) == "old"
    assert names(place.parent) == [place.name]


def test_what_live_writers_have_anywhere_in_a_folder_is_kept(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".b.tmp-abcdefgh").mkdir()
    (tmp_path / "deep" / ".b.tmp-abcdefgh" / "notes").write_text("mine")
    with atomic_dir(tmp_path / "deep" / "a") as scratch:
        (scratch / "b").write_text("1")
        remove_stale_below(tmp_path)
        assert names(scratch) == ["b"]
    assert names(tmp_path / "deep") == [".b.tmp-abcdefgh", "a"]


def test_a_kill_while_a_work_folder_is_removed_leaves_its_lock_to_the_end(tmp_path):
    """Who enters it next must not find what the one before is still removing."""

    def remove() -> None:
        with claimed(tmp_path / "work", tmp_path / "out"):
            (tmp_path / "work" / "a").mkdir(exist_ok=True)
            (tmp_path / "work" / "a" / "b").write_text("1")
            (tmp_path / "work" / "z").write_text("1")
            remove_claimed(tmp_path / "work")

    number, seen = 1, set()
    while killed_before_event(number, remove):
        left = names(tmp_path / "work") if (tmp_path / "work").exists() else []
        assert ".lock~" in left or not left
        seen.add(tuple(left))
        number += 1
        discard(tmp_path / "work")
        assert names(tmp_path) == []
    assert {(), (".lock~",), (".lock~", "z"), (".lock~", "a", "z")} <= seen


def test_a_work_folder_that_goes_away_meanwhile_is_made_again(tmp_path, monkeypatch):
    real, times = publishing._locked, []

    def locked(folder):
        times.append(folder)
        if len(times) == 1:
            folder.rmdir()
        return real(folder)

    monkeypatch.setattr(publishing, "_locked", locked)
    with claimed(tmp_path / "work", tmp_path / "out"):
        assert names(tmp_path / "work") == [".lock~"]
        discard(tmp_path / "work")
        assert names(tmp_path / "work") == [".lock~"], "another has it"
    assert len(times) == 3


def test_a_live_writer_keeps_its_scratch_folder(tmp_path):
    with atomic_dir(tmp_path / "out") as first:
        (first / "a").write_text("1")
        with pytest.raises(KeyError), atomic_dir(tmp_path / "out"):
            raise KeyError
        assert names(first) == ["a"]
    assert names(tmp_path / "out") == ["a"]


def test_what_appeared_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OutputError, match="exists"), atomic_dir(tmp_path / "out", overwrite=False):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "first").write_text("")
    assert names(tmp_path / "out") == ["first"]
    with pytest.raises(OutputError, match="exists"), atomic_dir(tmp_path / "file", overwrite=False):
        (tmp_path / "file").write_text("first")
    assert (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == ["file", "out"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:
        monkeypatch.setattr(publishing, "_system_rename", lambda *_, **__: False)
    with pytest.raises(OutputError, match="exists"), atomic_file(tmp_path / "a", overwrite=False) as scratch:
        scratch.write_text("second")
        (tmp_path / "a").write_text("first")
    assert (tmp_path / "a").read_text() == "first"
    with atomic_file(tmp_path / "b", overwrite=False) as scratch:
        scratch.write_text("alone")
    assert (tmp_path / "b").read_text() == "alone"
    assert names(tmp_path) == ["a", "b"]


def test_links_and_devices_are_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "nowhere", "pipe"):
        with pytest.raises(OutputError, match="a link or a device"), atomic_dir(tmp_path / name):
            pytest.fail("the block must not run")
    assert names(tmp_path) == ["link", "mine", "nowhere", "pipe"]


def test_files_of_others_are_never_removed(tmp_path):
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"did not write.*thesis\.tex"):
        write(tmp_path / "out", "new")
    assert names(tmp_path / "out") == ["tangora.json", "thesis.tex", "weights"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "deep").mkdir()
    with pytest.raises(OutputError, match="did not write"):
        write(tmp_path / "folder", "new")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a file is where the folder would be"):
        write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "x"


def test_an_output_of_an_earlier_version_lists_no_files(tmp_path):
    old = tmp_path / "out"
    (old / "heads").mkdir(parents=True)
    for name in (
        "adapter_config.json",
        "adapter_model.safetensors",
        "tangora.json",
        "README.md",
        "heads/a.safetensors",
    ):
        (old / name).write_text("{}")
    write(old, "new")
    assert content(old) == "new"


def test_inputs_are_never_replaced(tmp_path):
    (tmp_path / "work" / "a").mkdir(parents=True)
    (tmp_path / "work" / "a" / "weights").write_text("x")
    for out in (tmp_path / "work", tmp_path / "work" / "a", tmp_path / "work" / "a" / ".." / "a"):
        with pytest.raises(OutputError, match="is an input, or contains it"):
            refuse_existing(out, True, [tmp_path / "work" / "a"])
    refuse_existing(tmp_path / "work" / "b", True, [tmp_path / "work" / "a"])


def test_a_link_planted_as_a_scratch_folder_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("x")
    (tmp_path / ".out.tmp-abcdefgh").symlink_to(tmp_path / "mine")
    with atomic_dir(tmp_path / "out"):
        pass
    assert names(tmp_path / "mine") == ["a"]


def test_a_folder_that_only_looks_like_a_scratch_one_is_kept(tmp_path):
    (tmp_path / ".out.tmp-abcdefgh").mkdir()
    (tmp_path / ".out.tmp-abcdefgh" / "notes").write_text("x")
    with atomic_dir(tmp_path / "out"):
        pass
    assert names(tmp_path / ".out.tmp-abcdefgh") == ["notes"]


def test_everything_is_synced_before_it_is_renamed_and_the_folder_after(tmp_path, monkeypatch):
    order: list[tuple[str, int]] = []
    real = os.fsync, Path.rename

    def fsync(handle):
        order.append(("sync", os.fstat(handle).st_ino))
        real[0](handle)

    def rename(path, target):
        order.append(("rename", path.stat().st_ino))
        return real[1](path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    write(tmp_path / "out", "new")
    out = tmp_path / "out"
    inodes = {p.stat().st_ino for p in (out, out / "weights", out / "weights" / "a", out / "tangora.json")}
    at = order.index(("rename", out.stat().st_ino))
    assert inodes <= {inode for what, inode in order[:at] if what == "sync"}
    assert ("sync", tmp_path.stat().st_ino) in order[at:]


def test_the_longest_name_that_a_file_can_have(tmp_path):
    name = "n" * 255
    write_json(tmp_path / name, {"x": 1})
    assert names(tmp_path) == [name]
    with pytest.raises(OutputError, match="cannot be written"):
        write_json(tmp_path / (name + "n"), {"x": 1})
