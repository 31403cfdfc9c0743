from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tangora.errors import FileError
from tangora.storage import header
from tangora.storage.header import read_header, write_header


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_it_finds_what_safetensors_wrote(tmp_path):
    weights = {"a": torch.randn(3, 2), "b": torch.arange(5), "c": torch.randn(4).bfloat16(), "empty": torch.zeros(0, 3)}
    save_file(weights, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert found.keys() == weights.keys()
    data = (tmp_path / "x.safetensors").read_bytes()
    for name, tensor in weights.items():
        stored = found[name]
        assert stored.shape == tuple(tensor.shape)
        assert data[stored.start : stored.start + stored.size] == bytes(
            tensor.contiguous().view(-1).view(torch.uint8).numpy()
        )


def test_safetensors_reads_what_it_writes(tmp_path):
    numbers = torch.randn(2, 3)
    head = write_header([("a", "F32", (2, 3)), ("é", "I64", (1,))])
    (tmp_path / "x.safetensors").write_bytes(head + numbers.numpy().tobytes() + struct.pack("<q", 7))
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["a"], numbers)
    assert found["é"].tolist() == [7]
    assert len(head) % 8 == 0


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry(offsets=(0, 16))}, b"x" * 16, "does not fill"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, b"x" * 12, "overlap"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, b"x" * 20, "belong to no tensor"),
        ({"a": entry()}, b"x" * 4, "size is wrong"),
        ({"a": entry()}, b"x" * 12, "size is wrong"),
        ({"a": entry(dtype="F4")}, b"x" * 8, "cannot be read"),
        ({"a": entry(shape=(-2,))}, b"x" * 8, "whole numbers"),
        ({"a": entry(shape=(True, 2))}, b"x" * 8, "whole numbers"),
        ({"a": entry(shape=(2**62, 2**62))}, b"x" * 8, "does not fill"),
        ({"a": entry(offsets=(8, 0))}, b"x" * 8, "whole numbers"),
        ({"a": [1]}, b"", "without dtype"),
        ([1], b"", "not an object"),
        (b"{nonsense", b"", "not JSON"),
        (b'{"a":1,"a":2}', b"", "duplicate name"),
        (b"\xff\xfe", b"", "not JSON"),
        (b"[" * 5000, b"", "not JSON"),
    ],
)
def test_bad_headers(tmp_path, header, data, words):
    with pytest.raises(FileError, match=words):
        read_header(write(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("length", [0, 2**63, 10**8 + 1, 500])
def test_bad_lengths_allocate_nothing(tmp_path, length):
    with pytest.raises(FileError, match="length is wrong"):
        read_header(write(tmp_path / "x.safetensors", {"a": entry()}, length=length))


def test_too_many_tensors_and_dimensions(tmp_path, monkeypatch):
    path = write(tmp_path / "x.safetensors", {"a": entry(shape=[1] * 63 + [2]), "b": entry(offsets=(8, 16))}, bytes(16))
    assert len(read_header(path)["a"].shape) == 64
    monkeypatch.setattr(header, "_MOST", 1)
    with pytest.raises(FileError, match="more than 1 tensors, got 2"):
        read_header(path)
    with pytest.raises(FileError, match="not whole numbers"):
        read_header(write(tmp_path / "y.safetensors", {"a": entry(shape=[1] * 64 + [2])}, bytes(8)))


def test_short_and_missing_files(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(FileError, match="length is wrong"):
        read_header(tmp_path / "x")
    with pytest.raises(FileError, match="cannot be read"):
        read_header(tmp_path / "y")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_is_an_error_or_a_sound_header(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("f") / "x.safetensors"
    save_file({"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.int64)}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    path.write_bytes(raw)
    try:
        found = read_header(path)
    except FileError:
        return
    assert all(s.start >= 0 and s.start + s.size <= len(raw) for s in found.values())
