"""Data that claim more than a machine has: refused by what their headers say, before anything is allocated."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pyarrow
import pytest
from numpy.lib import format as npy
from PIL import Image
from pyarrow import parquet

from tangora.config.recipe import Source
from tangora.errors import DataError
from tangora.tasks import arrays
from tangora.tasks.images import rgb
from tangora.tasks.sources import read


def read_one(kind, path):
    """The rows of one file as both splits; a copy stands for the second."""
    other = path.with_name("other-" + path.name)
    other.write_bytes(path.read_bytes())
    return read(Source.model_validate({kind: {"train": str(path), "test": str(other)}}), "x")["train"]


def header(shape, dtype="|u1", version=(1, 0)):
    """The first bytes of an array's file."""
    stream = io.BytesIO()
    write = npy.write_array_header_1_0 if version == (1, 0) else npy.write_array_header_2_0
    write(stream, {"shape": shape, "fortran_order": False, "descr": dtype})
    return stream.getvalue()


def npz(path, **entries):
    """An npz file of these bytes, compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name.replace("_npy", ".npy"), data)
    return path


GOOD = header((2,), "<i8") + bytes(16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header((2**31, 64, 64, 3)), "not readable|more memory"),  # 26 TB by its header
        (header((4,)) + bytes(3), "not readable"),
        (header((2**40, 0)), "more memory"),
        (header((2**40,), "<U0"), "more memory"),
        (header((4,), "|O") + bytes(32), "not objects or records"),
        (header((1,), [("a", "<i8")]) + bytes(8), "not objects or records"),
        (header((1,), "|V8") + bytes(8), "not objects or records"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 64, "header is too long"),
        (b"\x93NUMPY\x03\x00" + header((2,))[8:] + bytes(2), "unknown format"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 4) + b"[[[[", "not readable"),
        (header((-1,)), "not of whole numbers"),
        (b"nothing", "not readable"),
    ],
)
def test_an_array_that_is_not_what_its_header_says(tmp_path, data, message):
    path = npz(tmp_path / "a.npz", image_npy=data, label_npy=GOOD)
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        read_one("npz", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


def test_an_entry_that_is_no_array(tmp_path):
    with pytest.raises(DataError, match=r"an entry that is no array at readme\.txt in"):
        read_one("npz", npz(tmp_path / "a.npz", label_npy=GOOD, **{"readme.txt": b"x"}))


@pytest.fixture
def small_machine(monkeypatch):
    """A machine of 2 MB."""
    monkeypatch.setattr(arrays, "memory_limit", lambda: 2_000_000)


def test_a_bomb_of_zeros(tmp_path, small_machine):
    path = npz(tmp_path / "a.npz", image_npy=header((2, 600_000)) + bytes(1_200_000), label_npy=GOOD)
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"half of what this machine has, 1 MB, got '1\.2 MB'"):
        read_one("npz", path)


def test_rows_that_fit(tmp_path, small_machine):
    path = npz(tmp_path / "a.npz", image_npy=header((2, 400_000)) + bytes(800_000), label_npy=GOOD)
    assert read_one("npz", path).data["image"].shape == (2, 400_000)


def test_equal_rows_of_a_table_count_each(tmp_path, small_machine):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["x" * 100] * 50_000, "label": [0] * 50_000}), path)
    assert path.stat().st_size < 50_000
    with pytest.raises(DataError, match="more memory"):
        read_one("parquet", path)


@pytest.mark.parametrize(("kind", "row"), [("csv", b"aaaaaaaa,1\n"), ("jsonl", b'{"text": "aaaaaaaa", "label": 1}\n')])
def test_compressed_texts_count_in_full(tmp_path, small_machine, kind, row):
    head = b"text,label\n" if kind == "csv" else b""
    for count, fits in ((10, True), (200_000, False)):
        path = tmp_path / f"{count}.{kind}.gz"
        path.write_bytes(gzip.compress(head + row * count))
        if fits:
            assert read_one(kind, path).column("label") == [1] * count
        else:
            with pytest.raises(DataError, match="more memory"):
                read_one(kind, path)


def png(width, height, rows=b""):
    """A grey PNG of this size by its header."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (12_000, 12_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_of_too_many_pixels(size):
    with pytest.raises(DataError, match=r"pixels|not an image .*exceeds limit"):
        rgb(png(*size), "row 0")


def test_an_image_that_resizing_would_blow_up():
    data = png(1, 10_000, bytes(20_000))
    assert Image.open(io.BytesIO(data)).size == (1, 10_000)
    for value in (data, {"bytes": data, "path": None}, np.zeros((10_000, 1), np.uint8)):
        with pytest.raises(DataError, match="at most 100 times the shorter, got '1 x 10000' at row 0"):
            rgb(value, "row 0")
    assert rgb(png(1, 100, bytes(200)), "row 0").size == (1, 100)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


@pytest.mark.parametrize("value", [np.zeros((0, 4), np.uint8), b"", POSTSCRIPT])
def test_what_is_no_picture(value):
    with pytest.raises(DataError):
        rgb(value, "row 0")


@pytest.mark.filterwarnings("ignore")  # those of Pillow on tags
def test_any_damage_of_any_format():
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 255, (9, 7, 3), dtype=np.uint8))
    refused = 0
    for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        assert rgb(stream.getvalue(), "row 0").size == (7, 9)
        for _ in range(60):
            data = bytearray(stream.getvalue())
            for at in draw.integers(0, len(data), 4):
                data[at] = draw.integers(0, 256)
            try:
                rgb(bytes(data[: draw.integers(1, 2 * len(data))]), "row 0")
            except DataError:
                refused += 1
    assert refused > 100


def test_images_of_a_table_are_decoded_by_us(tmp_path):
    """A damaged image in a column of `datasets` is a row of the table, not an error of its iteration."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Column

    path = tmp_path / "a.parquet"
    good = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(good, "PNG")
    rows = {"image": [{"bytes": good.getvalue(), "path": None}, {"bytes": b"no", "path": None}], "label": [0, 1]}
    Dataset.from_dict(rows, features=Features({"image": Column(), "label": Value("int64")})).to_parquet(path)
    table = read_one("parquet", path)
    first, second = (row["image"] for row in table.rows(["image"]))
    assert rgb(first, "row 0").getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DataError, match="not an image"):
        rgb(second, "row 1")
