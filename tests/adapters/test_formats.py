"""The contract of formats, over the registry; a broken one; a format of another package in commands."""

from __future__ import annotations

import json
from typing import Final

import pytest
import torch
from torch import nn

import plugins
import tangora
import toys
from tangora.adapters.adapter import Adapter, Metadata, load
from tangora.adapters.contract import format_of, holds_adapter
from tangora.cli import commands as cli
from tangora.errors import AdapterError, ArgumentError, PluginError
from tangora.support.seams import FORMATS
from tangora.testing import check_format
from tangora.updates.task_vector import Dense, LowRank

LORA, DELTA = type(FORMATS.get("lora")), type(FORMATS.get("delta"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_its_promises(name):
    check_format(FORMATS.get(name))


class Greedy(DELTA):
    name: Final = "greedy"

    def recognizes(self, path):
        return path.is_dir()


class Rounding(DELTA):
    name: Final = "rounding"

    def read(self, path, about, base=None, *, lazily=False):
        read = super().read(path, about, base, lazily=lazily)
        return Adapter({n: Dense(u.dense().half().float()) for n, u in read.updates.items()}, read.metadata)


class Empty(DELTA):
    name: Final = "empty"

    def write(self, adapter, folder):
        pass


class Writing(DELTA):
    name: Final = "writing"
    read_only: Final = True


BROKEN = {
    Greedy: "greedy: recognizes",
    Rounding: "read gives other numbers",
    Empty: "write leaves no file",
    Writing: "is read-only, and writes",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.name)
def test_a_broken_format_is_caught(broken, monkeypatch):
    monkeypatch.setattr(type(FORMATS), "all", lambda self: {"lora": LORA()})  # without the one that it derives from
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_format(broken())


def test_exactly_one_format_must_recognize_a_path(tmp_path):
    toys.lora(1).save(tmp_path / "a")
    assert format_of(tmp_path / "a").name == "lora"
    FORMATS.register("greedy", Greedy())
    try:
        with pytest.raises(AdapterError, match=r"several formats recognize this, got 'greedy, lora'.*uninstall"):
            load(tmp_path / "a")
    finally:
        FORMATS.unregister("greedy")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "adapter_config.json").write_text(json.dumps({"peft_type": 3}))
    names = "comfy, delta, diffusers, kohya, lora, mlx, modules, peft, routed, tuners"
    message = rf"no format recognizes this.*\(formats: {names}\), got 'peft_type 3'"
    with pytest.raises(AdapterError, match=message):
        load(tmp_path / "odd")


def test_a_format_that_does_not_fit_or_is_unknown_writes_nothing(tmp_path):
    with pytest.raises(ArgumentError, match="this adapter is of kind lora, got 'delta'"):
        toys.lora(1).save(tmp_path / "a", format="delta")
    with pytest.raises(PluginError, match="no such format, got 'lorra'"):
        toys.lora(1).save(tmp_path / "a", format="lorra")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = plugins.install(tmp_path_factory.mktemp("site"), "format")
    with plugins.installed(folder, FORMATS):
        yield folder


@pytest.fixture
def files(site, tmp_path):
    """Two adapters, each in a single file."""
    adapters = [toys.lora(seed, initial=False) for seed in (1, 2)]
    paths = []
    for i, adapter in enumerate(adapters):
        adapter.save(tmp_path / f"folder{i}", format="single-file")
        paths.append((tmp_path / f"folder{i}" / "lora.safetensors").rename(tmp_path / f"{i}.safetensors"))
    return adapters, paths


def test_a_format_of_another_package(files, tmp_path, capsys):
    adapters, paths = files
    check_format(FORMATS.get("single-file"))
    assert all(holds_adapter(path) for path in paths)
    assert [load(path).fingerprint for path in paths] == [adapter.fingerprint for adapter in adapters]
    cli.app(["fuse", *map(str, paths), "--weights", "0.5", "--out", str(tmp_path / "fused")], standalone_mode=False)
    assert "fused 2 adapters" in capsys.readouterr().out
    expected, found = tangora.fuse(adapters, weights=0.5), load(tmp_path / "fused")
    for name, update in expected.updates.items():
        torch.testing.assert_close(found.updates[name].dense(), update.dense())
    cli.app(["inspect", *map(str, paths), "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in document["folders"]] == ["lora", "lora"]
    assert {s["name"] for s in document["folders"][0]["sites"]} == set(adapters[0].updates)
    assert "task_arithmetic" in document["fusable"]["spaces"]["delta"]


def test_a_model_of_an_adapter_in_another_packages_format(site, tmp_path):
    update = LowRank(torch.ones(3, 1), torch.ones(1, 4), 0.5)
    Adapter({"0": update}).save(tmp_path / "a", format="single-file")
    base = nn.Sequential(nn.Linear(4, 3, bias=False, dtype=torch.float32))
    weight, x = base[0].weight.detach().clone(), torch.ones(1, 4)
    model = tangora.load_model(tmp_path / "a", base)
    torch.testing.assert_close(model(x), x @ (weight + update.dense()).T)


def test_an_adapter_and_its_metadata_are_one_line():
    updates = {f"layers.{i}": LowRank(torch.ones(3, 2), torch.ones(2, 4)) for i in range(24)}
    about = Metadata(task="sst2", mode="lora", base={"model": "org/all-MiniLM-L6-v2"})
    adapter = Adapter(updates, about)
    assert repr(adapter) == "Adapter(task 'sst2', mode lora, 24 sites, rank 2, base all-MiniLM-L6-v2)"
    assert repr(about) == "Metadata(kind='lora', mode='lora', task='sst2', base='org/all-MiniLM-L6-v2')"
    html = Adapter(updates, Metadata(task="<b>", mode="lora"))._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert repr(Adapter({"w": Dense(torch.ones(2))}, Metadata(kind="full"))) == "Adapter(1 parameters)"
