"""Rows of Python values as a table: bare values are in whichever column a task reads."""

from __future__ import annotations

import numpy as np
import pytest

from tangora.errors import ArgumentError, DataError
from tangora.tasks.recorded import read_inputs
from tangora.tasks.rows import refuse_several_columns, table_of


@pytest.mark.parametrize("rows", [["a", "b", "c"], ("a", "b", "c"), np.array(["a", "b", "c"])])
def test_bare_values_are_in_every_column(rows):
    table = table_of(rows, "here")
    assert len(table) == 3
    assert "anything" in table.columns
    table.need("anything", "text")
    assert table.column("anything") == ["a", "b", "c"]
    assert list(table.rows(["x"])) == [{"x": "a"}, {"x": "b"}, {"x": "c"}]
    part = table.select([2, 0]).select([0])
    assert (part.column("x"), part.place(0)) == (["c"], "here, row 2")
    refuse_several_columns(part)
    with pytest.raises(DataError, match=r"several columns, got '3 bare values' at here.*mapping of anything, x"):
        refuse_several_columns(table)


def test_arrays_stay_arrays():
    images = np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3)
    table = table_of(images).select([1])
    assert isinstance(table.data["image"], np.ndarray)
    assert np.array_equal(table.data["image"], images[1:])


def test_mappings_are_columns():
    table = table_of([{"a": 1, "b": 2}, {"b": 3}])
    assert (table.columns, table.column("a"), len(table)) == (["a", "b"], [1, None], 2)
    refuse_several_columns(table)


@pytest.mark.parametrize("rows", ["text", b"text", {"a": 1}, 5, (x for x in "abc")])
def test_what_is_no_list_of_rows(rows):
    with pytest.raises(ArgumentError, match="rows are a list"):
        table_of(rows)


def test_no_rows_and_rows_of_two_forms():
    with pytest.raises(ArgumentError, match="no rows"):
        table_of([])
    with pytest.raises(DataError, match="others are not, got 1"):
        table_of([{"a": 1}, "b"])


def test_a_folder_of_images_needs_no_classes(image_data, tmp_path):
    import shutil

    files = sorted((image_data / "test" / "red").iterdir())[:2]
    for file in files:
        shutil.copy(file, tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    assert read_inputs(tmp_path, "x").column("photo") == [str(tmp_path / file.name) for file in files]
    assert len(read_inputs(image_data / "test", "x")) == 24
