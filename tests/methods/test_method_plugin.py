"""A fusion method of another package: installed, checked by the public suite, and used by ``tangora fuse``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plugins
import tangora
import toys
from tangora.adapters.adapter import load
from tangora.errors import PluginError
from tangora.methods import _registry, get, methods
from tangora.testing import check_method


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return plugins.install(tmp_path_factory.mktemp("site"), "method")


def test_it_is_found_and_keeps_its_promises(place, monkeypatch):
    monkeypatch.setattr(_registry, "_METHODS", dict(methods()))
    monkeypatch.setattr(_registry, "_LOADED", set(_registry._LOADED))
    with pytest.raises(PluginError, match="no such fusion method, got 'median'"):
        get("median")
    with plugins.installed(place):
        check_method("median")
        assert "median" in tangora.methods()
        assert tangora.methods.median is get("median").function


def test_the_command_fuses_by_it(place, tmp_path):
    adapters = [toys.lora(seed) for seed in (1, 2, 3)]
    for index, adapter in enumerate(adapters):
        adapter.save(tmp_path / f"a{index}")
    folders = [str(tmp_path / f"a{index}") for index in range(3)]
    command = [sys.executable, "-c", "from tangora.cli import main; main()", "fuse", *folders]
    options = ["--method", "median", "--out", str(tmp_path / "out")]
    paths = os.pathsep.join([str(place), str(Path(tangora.__file__).parents[1])])
    subprocess.run([*command, *options], env={**os.environ, "PYTHONPATH": paths}, check=True, capture_output=True)
    assert json.loads((tmp_path / "out" / "tangora.json").read_text())["fused"]["method"] == "median"
    fused = load(tmp_path / "out").updates["up"].dense()
    expected = torch.stack([adapter.updates["up"].dense() for adapter in adapters]).median(0).values
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5)
