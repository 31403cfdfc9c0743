"""Killed and resumed: the same bits, and finished shards are not made again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from folders import family, read, save, tuned
from tangora.checkpoints import fuse_checkpoints, fuser
from tangora.errors import FileError, OutputError
from tangora.support.publishing import scratch_beside


class Killed(BaseException):
    """What a signal would be."""


@pytest.fixture
def killed_after(monkeypatch):
    """The fusion dies after so many chunks."""

    def arm(chunks):
        left = [chunks]
        run = fuser.Fuser.run

        def mortal(self, *arguments):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            run(self, *arguments)

        monkeypatch.setattr(fuser.Fuser, "run", mortal)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare"])
@pytest.mark.parametrize("chunks", [0, 1, 4, 6])
def test_a_killed_fusion_goes_on_to_the_same_bits(tmp_path, monkeypatch, killed_after, method, chunks):
    base, folders, _, _ = family(tmp_path)
    options = {"method": method, "shard_size": 700}
    whole = fuse_checkpoints(base, folders, tmp_path / "whole", **options)
    killed_after(chunks)
    with pytest.raises(Killed):
        fuse_checkpoints(base, folders, tmp_path / "out", threads=1, **options)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    merged = fuse_checkpoints(base, folders, tmp_path / "out", threads=2, block=64, **options)
    assert (merged.kept > 0) == (chunks > 0)
    assert merged.kept < merged.shards == whole.shards
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert not list(tmp_path.glob(".*"))


def interrupt(tmp_path, killed_after, monkeypatch, base, folders, **options):
    killed_after(5)
    with pytest.raises(Killed):
        fuse_checkpoints(base, folders, tmp_path / "out", threads=1, shard_size=700, **options)
    monkeypatch.undo()
    return tmp_path / ".out.fusing"


def test_a_damaged_shard_is_made_again(tmp_path, monkeypatch, killed_after):
    base, folders, _, _ = family(tmp_path)
    fuse_checkpoints(base, folders, tmp_path / "whole", shard_size=700)
    work = interrupt(tmp_path, killed_after, monkeypatch, base, folders)
    finished = sorted(json.loads((work / "state.json").read_text())["shards"])
    assert len(finished) > 1
    data = bytearray((work / "out" / finished[0]).read_bytes())
    data[-1] ^= 1
    (work / "out" / finished[0]).write_bytes(data)
    merged = fuse_checkpoints(base, folders, tmp_path / "out", shard_size=700)
    assert merged.kept == len(finished) - 1
    assert all(torch.equal(a, read(tmp_path / "whole")[n]) for n, a in read(tmp_path / "out").items())


def test_what_a_killed_fusion_was_writing_is_neither_published_nor_listed(tmp_path, monkeypatch, killed_after):
    base, folders, _, _ = family(tmp_path)
    fuse_checkpoints(base, folders, tmp_path / "whole", shard_size=700)
    work = interrupt(tmp_path, killed_after, monkeypatch, base, folders)
    scratch = work / "out" / ".tangora_fusion.json.tmp-abcdefgh"
    scratch.mkdir()
    for path in (scratch / "tangora_fusion.json", work / "out" / "half"):
        path.write_text("{")
    assert fuse_checkpoints(base, folders, tmp_path / "out", shard_size=700).kept > 0
    found, whole = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("out", "whole"))
    assert found == whole


def test_the_record_is_written_in_its_place(tmp_path, monkeypatch):
    """A scratch folder for it would be listed in it, if a kill left one."""
    base, folders, _, _ = family(tmp_path)
    fuse_checkpoints(base, folders, tmp_path / "once")
    places = []
    monkeypatch.setattr(
        "tangora.support.files.scratch_beside", lambda path, real=scratch_beside: places.append(path.name) or real(path)
    )
    fuse_checkpoints(base, folders, tmp_path / "out")
    assert set(places) == {"state.json"}


@pytest.mark.parametrize("change", ["weights", "input", "state"])
def test_another_fusion_begins_anew(tmp_path, monkeypatch, killed_after, change):
    base, folders, weights, _ = family(tmp_path)
    work = interrupt(tmp_path, killed_after, monkeypatch, base, folders)
    options = {"weights": 0.7} if change == "weights" else {}
    if change == "input":
        save(folders[0], tuned(weights, 9))
    if change == "state":
        (work / "state.json").write_text("{torn")
    merged = fuse_checkpoints(base, folders, tmp_path / "out", shard_size=700, **options)
    assert merged.kept == 0
    fuse_checkpoints(base, folders, tmp_path / "whole", shard_size=700, **options)
    assert all(torch.equal(a, read(tmp_path / "whole")[n]) for n, a in read(tmp_path / "out").items())


def test_global_cutoffs_are_kept(tmp_path, monkeypatch, killed_after):
    base, folders, _, _ = family(tmp_path)
    work = interrupt(tmp_path, killed_after, monkeypatch, base, folders, method="ties")
    assert len(json.loads((work / "state.json").read_text())["cutoffs"]) == len(folders)

    def never(*_):
        raise AssertionError("searched again")

    monkeypatch.setattr("tangora.checkpoints.steps.Steps._sample", never)
    fuse_checkpoints(base, folders, tmp_path / "out", "ties", shard_size=700)


def test_an_error_of_the_inputs_leaves_nothing(tmp_path):
    base, folders, _, models = family(tmp_path)
    models[2]["lm_head.weight"][0, 0] = torch.nan
    save(folders[2], models[2], 3)
    with pytest.raises(FileError):
        fuse_checkpoints(base, folders, tmp_path / "out", shard_size=700)
    assert {p.name for p in tmp_path.iterdir()} == {"base", "m0", "m1", "m2"}


def test_two_at_once(tmp_path):
    import fcntl

    base, folders, _, _ = family(tmp_path)
    (tmp_path / ".out.fusing").mkdir()
    handle = os.open(tmp_path / ".out.fusing" / ".lock~", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="another process"):
        fuse_checkpoints(base, folders, tmp_path / "out")
    os.close(handle)
    fuse_checkpoints(base, folders, tmp_path / "out")


def test_a_full_disk(tmp_path, monkeypatch):
    import shutil

    base, folders, _, _ = family(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OutputError, match="too full"):
        fuse_checkpoints(base, folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_shrinks_meanwhile(tmp_path, monkeypatch):
    from tangora.checkpoints import merge

    base, folders, _, _ = family(tmp_path, 1)
    run = merge._run

    def late(*arguments):
        path = folders[0] / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        run(*arguments)

    monkeypatch.setattr(merge, "_run", late)
    with pytest.raises(FileError, match="ends early"):
        fuse_checkpoints(base, folders, tmp_path / "out")


SCRIPT = """
import sys
from pathlib import Path
from tangora.checkpoints import fuse_checkpoints, fuser
import time
run = fuser.Fuser.run
def slow(self, *arguments):
    time.sleep(0.2)
    run(self, *arguments)
fuser.Fuser.run = slow
root = Path(sys.argv[1])
fuse_checkpoints(root / "base", [root / f"m{i}" for i in range(3)], root / "out", "dare", shard_size=700, threads=1)
"""


@pytest.mark.slow
def test_kill_9(tmp_path):
    base, folders, _, _ = family(tmp_path)
    fuse_checkpoints(base, folders, tmp_path / "whole", "dare", shard_size=700)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    state, deadline = tmp_path / ".out.fusing" / "state.json", time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists()
    assert not (tmp_path / "out").exists()
    merged = fuse_checkpoints(base, folders, tmp_path / "out", "dare", shard_size=700)
    assert merged.kept >= 1
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
