"""A source of one file: cut into train, validation and test by class and seed; rows of one input stay together."""

from __future__ import annotations

import csv
import json
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from tangora.config.recipe import load_recipe
from tangora.errors import DataError, RecipeError
from tangora.tasks.load import read_rows
from tangora.tasks.splits import cut_groups

RECIPE = """
name: tiny
base: {{family: {family}, model: bert}}
tasks:
  - {{name: mail, source: {source}, {more}}}
"""


def rows_of(tmp_path, source, family="text-classification", more="", seed=0):
    (tmp_path / "r.yaml").write_text(RECIPE.format(family=family, source=source, more=more))
    config = load_recipe(tmp_path / "r.yaml").tasks[0]
    return read_rows(config, family, seed)


def write(path, rows, names=("text", "label"), sep=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=sep).writerows([names, *rows])


MAIL = [(f"letter {n}", ("refund", "delivery", "thanks")[n % 3 if n < 60 else 0]) for n in range(100)]


def texts(parts):
    return {split: part.table.column("text") for split, part in parts.items()}


def test_three_splits_without_a_common_row_in_proportion_to_classes(tmp_path):
    write(tmp_path / "mail.csv", MAIL)
    classes, parts = rows_of(tmp_path, "{csv: mail.csv}")
    assert classes == ["delivery", "refund", "thanks"]
    found = texts(parts)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 72, "validation": 8, "test": 20}
    assert sorted(chain(*found.values())) == sorted(text for text, _ in MAIL)
    whole = Counter(label for _, label in MAIL)
    of_test = Counter(classes[target] for target in parts["test"].targets)
    assert all(abs(of_test[name] - 0.2 * whole[name]) <= 1 for name in whole)
    again = texts(rows_of(tmp_path, "{csv: mail.csv}")[1])
    assert again == found, "the seed alone decides"
    assert texts(rows_of(tmp_path, "{csv: mail.csv}", seed=1)[1]) != found


def test_fractions(tmp_path):
    write(tmp_path / "mail.csv", MAIL)
    _, parts = rows_of(tmp_path, "{csv: mail.csv}", more="test_fraction: 0.5, validation_fraction: 0.2")
    assert {split: len(part.targets) for split, part in parts.items()} == {"train": 40, "validation": 10, "test": 50}
    _, parts = rows_of(tmp_path, "{csv: mail.csv}", more="limit: {train: 30, test: 10}")
    assert {split: len(part.targets) for split, part in parts.items()} == {"train": 30, "validation": 8, "test": 10}


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_one_text_are_in_one_split(tmp_path, seed):
    doubled = [(text.upper() + " " * (n % 2), label) for n, (text, label) in enumerate(MAIL[:50])]
    write(tmp_path / "mail.csv", [*MAIL, *doubled, *MAIL[:20], ("letter 3", "thanks")])
    _, parts = rows_of(tmp_path, "{csv: mail.csv}", seed=seed)
    of_split = {split: {" ".join(text.lower().split()) for text in rows} for split, rows in texts(parts).items()}
    assert not of_split["train"] & of_split["test"]
    assert not of_split["train"] & of_split["validation"]
    assert not of_split["test"] & of_split["validation"]
    assert sum(len(part.targets) for part in parts.values()) == 171
    assert 0.1 < len(parts["test"].targets) / 171 <= 0.2


def test_lines_of_rows_are_those_of_the_file(tmp_path):
    write(tmp_path / "mail.csv", MAIL)
    _, parts = rows_of(tmp_path, "{csv: mail.csv}")
    number = int(parts["test"].table.column("text")[0].split()[1])
    assert parts["test"].table.place(0).endswith(f"row {number} (line {number + 2})")


@pytest.mark.parametrize(
    ("encoding", "sep", "said"),
    [("cp1252", ";", 'sep: ";", encoding: cp1252'), ("utf-16", "\t", 'sep: "\\t", encoding: utf-16')],
)
def test_separators_and_encodings(tmp_path, encoding, sep, said):
    write(tmp_path / "mail.csv", [(f"Grüße, {text} über", label) for text, label in MAIL], sep=sep, encoding=encoding)
    _, parts = rows_of(tmp_path, f"{{csv: mail.csv, {said}}}")
    assert all(text.startswith("Grüße, letter ") and text.endswith(" über") for text in texts(parts)["train"])


def test_an_encoding_that_is_not_the_files(tmp_path):
    write(tmp_path / "mail.csv", [(f"Grüße {text}", label) for text, label in MAIL], encoding="cp1252")
    with pytest.raises(DataError, match=r"not in UTF-8, got 'text'.*source\.encoding, such as cp1252"):
        rows_of(tmp_path, "{csv: mail.csv}")
    with pytest.raises(DataError, match=r"not in the encoding ascii .*mail\.csv"):
        rows_of(tmp_path, "{csv: mail.csv, encoding: ascii}")


def test_json_lines_prompts_and_completions(tmp_path):
    rows = [{"prompt": f"{n % 10} + 1 =", "completion": f"{n % 10 + 1}"} for n in range(40)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "sums.jsonl").write_text(lines, encoding="utf-8")
    _, parts = rows_of(tmp_path, "{jsonl: sums.jsonl}", family="causal-lm", more='prompt: "{prompt}"')
    prompts = {split: set(part.table.column("prompt")) for split, part in parts.items()}
    assert sum(map(len, prompts.values())) == 10 == len(set.union(*prompts.values()))


def test_one_folder_of_images(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(10):
            (tmp_path / "pets" / name / f"{n}.png").write_bytes(f"{name}{n // 2}".encode())
    _, parts = rows_of(tmp_path, "{imagefolder: pets}", family="image-classification", more="validation_fraction: 0.3")
    held = [{Path(path).read_bytes() for path in part.table.column("image")} for part in parts.values()]
    assert sum(map(len, held)) == 10 == len(set.union(*held)), "files of equal bytes are in one split"
    assert all(set(part.targets) == {0, 1} for part in parts.values())


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ("{csv: mail.csv, encoding: latn1}", "", "no such encoding"),
        ("{csv: mail.csv, sep: ab}", "", "at most 1 character"),
        ("{csv: {train: a, test: b}}", "test_fraction: 0.3", "test_fraction is for a source of one file"),
        ("{csv: {train: a}}", "", "needs a train and a test split.*or one, csv"),
        ("{hub: a, sep: b}", "", "sep is of csv"),
        ("{parquet: a, encoding: utf-8}", "", "encoding is of csv and jsonl"),
    ],
)
def test_recipes_that_are_refused(tmp_path, source, more, message):
    with pytest.raises(RecipeError, match=message):
        rows_of(tmp_path, source, more=more)


def test_rows_that_cannot_be_cut(tmp_path):
    for rows, message in (
        (MAIL[:2], "too few rows to be cut, got 2"),
        ([("a", "x"), ("A", "x"), ("a ", "y")], "no test rows can be cut off, since all inputs are equal"),
        ([("a", "x"), ("b", "y"), ("b", "y")], "no validation rows can be cut off"),
    ):
        write(tmp_path / "mail.csv", rows)
        with pytest.raises(DataError, match=message):
            rows_of(tmp_path, "{csv: mail.csv}")


def test_groups_against_a_count_by_hand():
    """Four groups of 1, 1, 2 and 6 rows, a share of 0.4: at most 4 rows, and never a part of a group."""
    groups = [0, 1, 2, 2, 3, 3, 3, 3, 3, 3]
    for seed in range(20):
        kept, off = cut_groups(groups, 0.4, seed)
        assert sorted(kept + off) == list(range(10))
        assert not {groups[row] for row in kept} & {groups[row] for row in off}
        assert 1 <= len(off) <= 4
    assert cut_groups([0, 0, 0, 1, 1, 1, 1], 0.1, 0)[1] == [0, 1, 2], "the smallest, if none fits"
    kept, _ = cut_groups([0, 1, 2, 3], 0.9, 0, classes=["x", "x", "y", "y"])
    assert {row // 2 for row in kept} == {0, 1}, "a class keeps a group"
