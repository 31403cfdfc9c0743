"""Readers on input that nobody meant: an answer or a Tangora error, no file from elsewhere, no memory beyond its own.

Mutated files (bytes flipped, cut, inserted) and generated ones (any JSON in any place; headers that lie).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import save_file

import readers
import tangora
import toys
from readers import ADAPTER, READERS, load_and_save
from tangora.adapters.adapter import load
from tangora.adapters.formats.lora import settings as peft_settings
from tangora.checkpoints import fuse_checkpoints
from tangora.checkpoints.tokens import files_of, tokens_of
from tangora.config.recipe import TaskConfig, load_recipe
from tangora.errors import FileError, TangoraError
from tangora.storage.checkpoint import open_checkpoint
from tangora.storage.header import ITEMSIZE, read_header
from tangora.tasks.load import read_rows


def many(usual: int) -> int:
    """How many examples: as usual, or as many as ``make fuzz`` asks for."""
    return int(os.environ.get("TANGORA_FUZZ", usual))


NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.integers(0, 9)
TEXTS = st.text(max_size=8) | st.sampled_from(["up", "up(", "(a+)+", "../x", "\0", "\ud800", "LORA", "all", "pissa"])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted(peft_settings._BENIGN | peft_settings._REFUSED.keys()))


@pytest.fixture(scope="module")
def adapter():
    """An adapter's three files, as bytes."""
    return readers.adapter()


def attempt(files: dict[str, bytes], read=load_and_save) -> object:
    """What a reader makes of a folder of these files; None where it refuses them with a Tangora error."""
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        with contextlib.suppress(TangoraError):
            return read(Path(name))
        return None


@settings(max_examples=many(150), deadline=None)
@given(st.dictionaries(KEYS, JSON, min_size=1, max_size=3))
@example({"rank_pattern": {"up": 2**80}})
@example({"alpha_pattern": {"(" * 200 + "a" + ")" * 200: 1}})
@example({"lora_alpha": math.inf})
@example({"modules_to_save": [""], "bias": "all"})
@example({"target_parameters": [".", ""]})
def test_any_value_in_a_configuration(adapter, changes):
    config = json.loads(adapter["adapter_config.json"]) | changes
    attempt({**adapter, "adapter_config.json": json.dumps(config).encode("utf-8", "surrogatepass")})


POLISHED = {
    **{
        "start": "x",
        "start_error": 0.0,
        "split": "train",
        "measured_on": "held-out",
        "step": 1,
        "seed": 0,
        "settings": {},
    },
    **{"experts": {"x": "y"}, "rows": {"x": 2}, "recombined": {"x": 0}, "before": {"x": 1.0}, "after": {"x": 0.5}},
}


@settings(max_examples=many(80), deadline=None)
@given(
    JSON,
    st.sampled_from(
        [
            *("format", "kind", "base", "initial", "fused", "scores", "seed", "recipe", "verified", "task"),
            *("distilled", "polished"),
        ]
    ),
)
@example({"seed": 2**200, "init": True}, "initial")
@example({"seed": 0, "a_init": "per_task"}, "initial")
@example({"training": [1]}, "recipe")
@example({"lora": 5}, "recipe")
@example({"tasks": {"x": "y"}}, "scores")
@example({"method": "ties", "space": "delta", "parents": [{"name": "x", "fingerprint": "y"}], "weights": []}, "fused")
@example("\ud800", "task")
@example(POLISHED, "polished")
@example({**POLISHED, "experts": {}, "rows": {}, "recombined": {}, "before": {}, "after": {}}, "polished")
@example({**POLISHED, "rows": {}}, "polished")
@example({**POLISHED, "before": {"x": math.nan}, "settings": {"rank": [1]}}, "polished")
def test_any_value_in_the_metadata(adapter, value, key):
    metadata = json.loads(adapter["tangora.json"]) | {key: value}
    attempt({**adapter, "tangora.json": json.dumps(metadata).encode("utf-8", "surrogatepass")})


@pytest.mark.parametrize("text", ["[]", "1" * 5000, "[" * 100_000, '{"a": ' * 50_000, "\ufeff{}", "", "nan"])
@pytest.mark.parametrize("file", ["adapter_config.json", "tangora.json"])
def test_files_that_are_hardly_json(adapter, file, text):
    assert attempt({**adapter, file: text.encode()}) is None


@st.composite
def damage(draw):
    """A change of some bytes: where (a fraction of the file), how many are taken away, what comes in their place."""
    return draw(st.floats(0, 1)), draw(st.integers(0, 12)), draw(st.binary(max_size=12))


@settings(max_examples=many(200), deadline=None)
@given(st.sampled_from(ADAPTER), damage())
def test_damaged_bytes(adapter, file, change):
    at, cut, insert = change
    data = adapter[file]
    place = int(at * len(data))
    found = attempt({**adapter, file: data[:place] + insert + data[place + cut :]})
    assert found is None or all(bool(torch.isfinite(u.a).all()) for u in found.updates.values())


@pytest.mark.filterwarnings("ignore")  # those of Pillow on tags
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=many(25), deadline=None)
@given(st.lists(damage(), min_size=1, max_size=3))
def test_damaged_input_of_every_reader(name, changes):
    data = READERS[name].seed()
    for at, cut, insert in changes:
        place = int(at * len(data))
        data = data[:place] + insert + data[place + cut :]
    with contextlib.suppress(TangoraError):
        READERS[name].read(data)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_reads_its_seed(name):
    assert READERS[name].read(READERS[name].seed()) is not None


RECIPE = (Path(tangora.__file__).parent / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
YAML = st.sampled_from(
    [
        "!!bool may",
        "!!int x",
        "2020-99-99",
        "9" * 5000,
        "[" * 300,
        "&a [*a]",
        "!!timestamp 1",
        "!!python/object:x",
        "~",
        "1e999",
    ]
)


@settings(max_examples=many(150), deadline=None)
@given(damage() | st.tuples(st.floats(0, 1), st.integers(0, 12), YAML.map(str.encode)))
def test_damaged_recipes(change):
    at, cut, insert = change
    data = RECIPE.encode()
    place = int(at * len(data))
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        Path(file.name).write_bytes(data[:place] + insert + data[place + cut :])
        with contextlib.suppress(TangoraError):
            load_recipe(file.name)


@settings(max_examples=many(150), deadline=None)
@given(YAML, st.sampled_from(["seed", "base", "tasks", "modes", "training", "fusion", "machine", "lora", "data"]))
def test_any_value_in_a_recipe(value, key):
    with contextlib.suppress(TangoraError):
        load_recipe("quickstart", [f"{key}={value}"])


@settings(max_examples=many(100), deadline=None)
@given(st.dictionaries(st.sampled_from(["model", "added_tokens"]), JSON, max_size=2), JSON)
@example({"added_tokens": 5}, {"a": 0})
@example({"added_tokens": [{"id": 10, "content": "\ud800"}]}, {"a": 0})
@example({"model": {"vocab": [[{}, 1]]}}, None)
@example({"model": {"vocab": {"a": True}}}, None)
def test_any_tokenizer(changes, vocabulary):
    tokenizer = {"model": {"vocab": vocabulary}, **changes}
    files = {"tokenizer.json": json.dumps(tokenizer).encode("utf-8", "surrogatepass")}
    attempt(files, lambda folder: tokens_of(files_of(folder)))


@settings(max_examples=many(100), deadline=None)
@given(arrays(st.sampled_from([np.float64, np.int64, np.uint8, np.bool_, "U3"]), array_shapes(min_dims=0, max_dims=3)))
@example(np.eye(4)[:, :2])
@example(np.array([np.nan, 1.0]))
def test_any_label_in_an_npz(label):
    with tempfile.TemporaryDirectory() as folder:
        paths = {split: f"{folder}/{split}.npz" for split in ("train", "test")}
        for path in paths.values():
            np.savez(path, image=np.zeros((4, 8, 8, 3), np.uint8), label=label)
        with contextlib.suppress(TangoraError):
            read_rows(TaskConfig(name="t", source={"npz": paths}), "image-zero-shot", 0)


DIMENSIONS = st.integers(0, 4) | st.sampled_from([2**31, 2**40, 2**62, -1])
NAMES = st.sampled_from(
    [f"base_model.model.{site}.{end}" for site in ("up", "x.up") for end in ("lora_A.weight", "lora_B.weight", "bias")]
    + ["base_model.model.up.lora_embedding_A", "base_model.model.lora_A.weight", "model.embed_tokens.weight", "", "\n"]
)


@st.composite
def headers(draw):
    """A safetensors file whose header may lie about everything."""
    header, at = {}, 0
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        dtype = draw(st.sampled_from([*ITEMSIZE, "F4", "C64", "", None, 3]))
        shape = draw(st.lists(DIMENSIONS, max_size=4))
        honest = math.prod(shape) * ITEMSIZE.get(dtype, 1) if draw(st.integers(0, 3)) else draw(DIMENSIONS)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + honest]}
        at = at + honest if draw(st.integers(0, 5)) else 0
    if draw(st.integers(0, 4)) == 0:
        header[draw(NAMES)] = draw(JSON)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = len(text) if draw(st.integers(0, 4)) else draw(st.integers(0, 2**64 - 1))
    body = min(max(at, 0), 4096) if draw(st.integers(0, 3)) else draw(st.integers(0, 64))
    return struct.pack("<Q", length) + text + bytes(body)


@settings(max_examples=many(200), deadline=None)
@given(headers())
def test_headers_that_lie(adapter, data):
    attempt({**adapter, "adapter_model.safetensors": data})
    attempt({"config.json": b"{}", "model.safetensors": data}, open_checkpoint)


@settings(max_examples=many(60), deadline=None)
@given(headers())
def test_no_memory_beyond_the_file(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    with contextlib.suppress(FileError):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000 + 20 * len(data)


@settings(max_examples=many(100), deadline=None)
@given(JSON | st.dictionaries(TEXTS, JSON | TEXTS, max_size=3))
@example({"w": "\ud800"})
@example({"w": "\udc80"})
def test_any_index(value):
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps({"weight_map": value}).encode()}
    assert attempt(files, open_checkpoint) is None


OPENED: list[str] = []
LISTENING: list[bool] = []


def _listen(event: str, arguments: tuple) -> None:
    if LISTENING and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(os.path.realpath(os.fsdecode(arguments[0])))


@pytest.fixture(scope="module")
def listener():
    sys.addaudithook(_listen)  # for good: there is no way to take one away
    return OPENED


@pytest.fixture
def opened(listener):
    """Every path that Python opens during the test."""
    listener.clear()
    LISTENING.append(True)
    yield listener
    LISTENING.clear()


@pytest.fixture
def outside(tmp_path):
    """A file that is fit to be read, in the wrong place."""
    (tmp_path / "outside").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "outside/model.safetensors")
    return tmp_path / "outside/model.safetensors"


@pytest.mark.parametrize("shard", ["../outside/model.safetensors", "{absolute}", "sub/../../outside/model.safetensors",
                                   "..", ".", "", "a\\..\\b", "\0", "./model.safetensors"])  # fmt: skip
def test_an_index_that_points_elsewhere(tmp_path, outside, opened, shard):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    table = {"weight_map": {"w": shard.format(absolute=outside)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(FileError, match="outside the folder"):
        open_checkpoint(folder)
    assert str(outside) not in opened
    with pytest.raises(FileError):
        fuse_checkpoints(folder, [folder], tmp_path / "out")
    assert str(outside) not in opened


def links(folder, outside, kind):
    """The name of the file that is a link in a folder that is otherwise right."""
    toys.lora(1).save(folder)
    name = {"weights": "adapter_model.safetensors", "config": "adapter_config.json", "metadata": "tangora.json"}[kind]
    (folder / name).rename(outside.parent / name)
    (folder / name).symlink_to(outside.parent / name)
    return outside.parent / name


@pytest.mark.parametrize("kind", ["weights", "config", "metadata"])
def test_a_link_out_of_an_adapter(tmp_path, outside, opened, kind):
    target = links(tmp_path / "a", outside, kind)
    opened.clear()
    with pytest.raises(FileError, match="a link that leads out of the folder"):
        load(tmp_path / "a")
    assert str(target) not in opened


def test_a_link_to_itself(tmp_path):
    toys.lora(1).save(tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(FileError, match=r"not found|leads nowhere"):
        load(tmp_path / "a")


def test_the_cache_of_the_hub_is_read(tmp_path):
    """``snapshots/<revision>/`` links into ``blobs/`` of the same repository, and to nowhere else."""
    blobs, snapshot = tmp_path / "models--x--y/blobs", tmp_path / "models--x--y/snapshots/abc"
    toys.lora(1).save(snapshot)
    blobs.mkdir()
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(blobs / str(i))
    assert load(snapshot).fingerprint == toys.lora(1).fingerprint
    other = tmp_path / "models--x--z/blobs"
    other.mkdir(parents=True)
    (blobs / "0").rename(other / "0")
    (snapshot / "README.md").unlink()
    (snapshot / "adapter_config.json").unlink()
    (snapshot / "adapter_config.json").symlink_to(other / "0")
    with pytest.raises(FileError, match="leads out of the folder"):
        load(snapshot)


def test_heads_from_elsewhere(tmp_path, outside):
    toys.lora(1).save(tmp_path / "a")
    (tmp_path / "a/heads").symlink_to(outside.parent)
    with pytest.raises(FileError, match="leads out"):
        load(tmp_path / "a")
