from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from tangora.config.recipe import Source
from tangora.errors import DataError
from tangora.tasks.sources import read, read_file, read_whole


def _files(folder, ending):
    return {split: str(folder / f"{split}.{ending}") for split in ("train", "test")}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_tables_have_the_same_rows_in_every_format(kind, text_data):
    tables = read(Source.model_validate({kind: _files(text_data, kind)}), "colors")
    assert {split: len(table) for split, table in tables.items()} == {"train": 48, "test": 24}
    assert tables["train"].columns == ["text", "label", "name", "grade"]
    assert tables["test"].column("name")[:4] == ["red", "green", "blue", "red"]
    assert tables["test"].column("label")[:4] == [0, 1, 2, 0]
    assert tables["test"].select([2, 0]).column("grade") == [2.5, 0.5]
    assert next(tables["test"].rows(["name", "label"])) == {"name": "red", "label": 0}


def test_csv_keeps_words_that_look_like_missing_values(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text('text,label\nNA,0\n"two\nlines, one ""cell""",1\n')
    table = read(Source(csv=_files(tmp_path, "csv")), "x")["train"]
    assert table.column("text") == ["NA", 'two\nlines, one "cell"']


def test_a_row_with_other_columns_than_the_header_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    for text, row, columns in (
        ("text,label\na,b\nc, d,e\nf,g\n", "row 1 (line 3)", "3 columns, and the header has 2, got 'c, d,e'"),
        ('text,label\n"a\nb",c\n\nd\ne,f\n', "row 1 (line 5)", "1 column, and the header has 2, got 'd'"),
        ("text;label\na;b\nc, d;e\n", "row 1 (line 3)", "2 columns, and the header has 1, got 'c, d;e'"),
    ):
        path.write_text(text)
        with pytest.raises(DataError) as refused:
            read_file("csv", path)
        assert f"a row has {columns} at {path}, {row}. Quote a value that contains ','" in str(refused.value)
    path.write_text("text,label\na,b\nc, d,e\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"3 columns.*row 1 \(line 3\)"):
        read_whole(Source(csv=str(path), encoding="utf-16"), "x")


def test_csv_in_another_encoding_or_with_another_separator(tmp_path):
    rows = "text,label\nblü,a\nred,b\n"
    (tmp_path / "latin.csv").write_bytes(rows.encode("latin-1"))
    with pytest.raises(DataError, match=r"a column is not in UTF-8, got 'text'.*Save the file in the encoding UTF-8"):
        read_file("csv", tmp_path / "latin.csv")
    (tmp_path / "semicolons.csv").write_text(rows.replace(",", ";"), encoding="utf-8")
    with pytest.raises(DataError, match=r"one column, 'text;label': separate columns by commas"):
        read_file("csv", tmp_path / "semicolons.csv").need("text", "text")


def test_npz_and_imagefolder(image_data):
    arrays = read(Source(npz=_files(image_data, "npz")), "x")["test"]
    assert arrays.column("labels")[:3] == [0, 1, 2]
    assert arrays.select([1, 3]).data["images"].shape == (2, 20, 20, 3)
    folders = {split: str(image_data / split) for split in ("train", "test")}
    listed = read(Source(imagefolder=folders), "x")["test"]
    assert len(listed) == 24
    assert sorted(set(listed.column("label"))) == ["blue", "green", "red"]


def test_hub_reads_a_local_repository_with_slices(text_data, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    repository = tmp_path / "colors"
    repository.mkdir()
    for split in ("train", "test"):
        (repository / f"{split}.csv").write_bytes((text_data / f"{split}.csv").read_bytes())
    tables = read(Source(hub=str(repository)), "x")
    assert {split: len(table) for split, table in tables.items()} == {"train": 48, "test": 24}
    slices = {"train": "train[:30]", "validation": "train[30:]", "test": "test"}
    tables = read(Source(hub=str(repository), splits=slices), "x")
    assert {split: len(table) for split, table in tables.items()} == {"train": 30, "validation": 18, "test": 24}
    with pytest.raises(DataError, match="train and validation share rows"):
        read(Source(hub=str(repository), splits={**slices, "validation": "train[29:]"}), "x")
    with pytest.raises(DataError, match=r"cannot be loaded .*nowhere"):
        read(Source(hub=str(repository), splits={"train": "train", "test": "nowhere"}), "x")
    with pytest.raises(DataError, match=r"the test split is missing.*train"):
        read(Source(hub=str(repository), splits={"train": "train"}), "x")


def test_hub_without_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=r"cannot be loaded .* Check hub"):
        read(Source(hub=str(tmp_path / "absent")), "x")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "npz", "imagefolder"])
def test_missing_file(kind, tmp_path):
    files = {"train": str(tmp_path / "a"), "test": str(tmp_path / "b")}
    with pytest.raises(DataError, match=rf"not found at {tmp_path}/a"):
        read(Source.model_validate({kind: files}), "x")


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "npz"])
def test_corrupt_file(kind, tmp_path):
    files = _files(tmp_path, kind)
    for name in files.values():
        with open(name, "wb") as file:
            file.write(b"PAR1 neither this nor that")
    with pytest.raises(DataError, match=r"not readable .* at .*train"):
        read(Source.model_validate({kind: files}), "x")


def test_pickles_in_an_npz_are_refused(tmp_path):
    files = _files(tmp_path, "npz")
    for name in files.values():
        np.savez(name, image=np.array([{"a": 1}], dtype=object), label=np.array([0]))
    with pytest.raises(DataError, match="numbers or texts, not objects"):
        read(Source(npz=files), "x")


def test_truncated_npz(image_data, tmp_path):
    files = _files(tmp_path, "npz")
    whole = (image_data / "train.npz").read_bytes()
    for name in files.values():
        with open(name, "wb") as file:
            file.write(whole[: len(whole) // 2])
    with pytest.raises(zipfile.BadZipFile):
        np.load(io.BytesIO(whole[: len(whole) // 2]))
    with pytest.raises(DataError, match="not readable"):
        read(Source(npz=files), "x")


def test_npz_arrays_of_different_lengths(tmp_path):
    files = _files(tmp_path, "npz")
    for name in files.values():
        np.savez(name, image=np.zeros((3, 4, 4), np.uint8), label=np.array([0, 1]))
    with pytest.raises(DataError, match="one entry per row"):
        read(Source(npz=files), "x")


def test_one_file_cannot_be_two_splits(text_data):
    same = str(text_data / "train.csv")
    with pytest.raises(DataError, match="train and test are the same rows"):
        read(Source(csv={"train": same, "test": same}), "x")


def test_empty_split(text_data, tmp_path):
    header = tmp_path / "test.csv"
    header.write_text("text,label\n")
    with pytest.raises(DataError, match="the test split is empty"):
        read(Source(csv={"train": str(text_data / "train.csv"), "test": str(header)}), "x")


def test_imagefolder_without_images(image_data, tmp_path):
    (tmp_path / "red").mkdir()
    with pytest.raises(DataError, match="no images found"):
        read(Source(imagefolder={"train": str(image_data / "train"), "test": str(tmp_path)}), "x")


def test_builtin():
    tables = read(Source(builtin="digits"), "digits")
    assert set(tables) == {"train", "validation", "test"}
    assert len(tables["train"].class_names["label"]) == 10


def test_unknown_builtin():
    with pytest.raises(DataError, match="no such built-in data set"):
        read(Source(builtin="letters"), "x")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("rows.jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n', 3),
        ("rows.jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": "c"}', 3),
        ("rows.jsonl", '{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}\n', None),
        ("rows.csv", "text,n\na,1\nb,2\nc,3\n", 4),
        ("rows.csv", 'text,n\n"a\nand",1\nb,2\nc,3\n', None),
    ],
)
def test_errors_name_the_line_of_a_row_if_every_row_has_one(name, text, line, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    table = read_file(path.suffix[1:], path)
    place = f"{path}, column text, row 2" + ("" if line is None else f" (line {line})")
    assert table.place(2, "text") == place
    assert table.select([1, 2]).select([1]).place(0, "text") == place
