"""``tangora new``: a look at rows, a recipe with comments, and what is refused. The recipes pass a dry run."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from typer.testing import CliRunner

import tangora.cli.new
from tangora.cli import app
from tangora.config.recipe import load_recipe
from tangora.errors import ArgumentError, DataError, OutputError
from workshop import done as command

REVIEWS = [(n, f"this is review {n}", ("good", "bad", "so so")[n % 3]) for n in range(60)]


def write(path, rows=REVIEWS, names=("id", "review", "verdict"), sep=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=sep).writerows([names, *rows])


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_bert):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").symlink_to(tiny_bert)
    return tmp_path


def refused(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exception is not None
    return result.exception


def jsonl(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))


def test_a_csv_file_with_other_columns_separator_and_encoding(folder):
    rows = [(n, f"Gefühl {text}", label) for n, text, label in REVIEWS]
    write(folder / "my reviews.csv", rows, sep=";", encoding="cp1252")
    arguments = ("new", "--from", "my reviews.csv", "--text", "review", "--label", "verdict", "--base", "bert")
    result = command(*arguments, "--out", "recipes/r.yaml")
    lines = result.stdout.splitlines()
    assert lines[0] == "family: text-classification (a text and a label in every row)"
    assert lines[1] == ("my-reviews: 43 train, 5 validation, 12 test; 3 classes of 20 rows each")
    recipe = load_recipe("recipes/r.yaml")
    task = recipe.tasks[0]
    assert (task.text, task.label, task.source.sep, task.source.encoding) == ("review", "verdict", ";", "cp1252")
    assert (task.source.csv, recipe.base.model) == ("my reviews.csv", "bert")
    text = (folder / "recipes" / "r.yaml").read_text()
    assert "# 3 classes: bad (20), good (20), so so (20)" in text
    assert "  max_length: 128 # tokens of a text, or of a pair; what is longer is cut\n" in text
    assert "{csv: ../my reviews.csv, sep: ;, encoding: cp1252}" in text
    plan = json.loads(command("run", "recipes/r.yaml", "--dry-run", "--json").stdout)
    assert plan["rows"]["my-reviews"]["splits"]["test"]["rows"] == 12


def test_columns_are_found_by_name_and_by_content(folder):
    write(folder / "a.csv")
    document = json.loads(command("new", "--from", "a.csv", "--base", "bert", "--json").stdout)
    assert document["tasks"]["a"]["text"] == "review"
    assert document["tasks"]["a"]["label"] == "verdict"
    assert document["recipe"] == str(folder / "a.yaml")
    write(folder / "b.csv", names=("id", "worte", "ton"))
    command("new", "--from", "b.csv", "--base", "bert")
    assert [getattr(load_recipe("b.yaml").tasks[0], key) for key in ("text", "label")] == ["worte", "ton"]


def test_numbers_with_decimals_are_a_regression(folder):
    write(folder / "a.csv", [(n, text, n / 7) for n, text, _ in REVIEWS])
    command("new", "--from", "a.csv", "--label", "verdict", "--base", "bert")
    task = load_recipe("a.yaml").tasks[0]
    assert (task.problem, task.metric) == ("regression", "spearman")


def test_a_column_of_numbers_with_decimals_is_found(folder):
    """Each value occurs once, and the name is none of the usual: it is neither dropped nor a set of classes."""
    write(folder / "a.csv", [(n, text, n / 7 + 0.01) for n, text, _ in REVIEWS], names=("id", "review", "grams"))
    first, _, *_ = command("new", "--from", "a.csv", "--base", "bert").stdout.splitlines()
    assert first == "family: text-classification (a text and a number in every row)"
    task = load_recipe("a.yaml").tasks[0]
    assert (task.text, task.label, task.problem) == ("review", "grams", "regression")


def test_classes_that_are_numbers_are_named(folder):
    write(folder / "a.csv", [(n, text, 1 + n % 3) for n, text, _ in REVIEWS], names=("id", "review", "stars"))
    result = command("new", "--from", "a.csv", "--base", "bert")
    assert "a: the labels are numbers, and each is a class; if the number itself" in result.stderr
    assert "    # problem: regression" in (folder / "a.yaml").read_text()
    assert load_recipe("a.yaml").tasks[0].problem == "single"
    write(folder / "b.csv")
    assert "numbers" not in command("new", "--from", "b.csv", "--base", "bert").stderr


def test_an_empty_text_is_refused_with_its_line(folder):
    rows = [(n, "  " if n == 7 else text, label) for n, text, label in REVIEWS]
    write(folder / "a.csv", rows)
    error = refused("new", "--from", "a.csv", "--base", "bert")
    assert isinstance(error, DataError)
    assert "a text is empty" in str(error)
    assert "row 7 (line 9)" in str(error)
    assert not (folder / "a.yaml").exists()


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ([{"prompt": f"{n} + 1", "completion": f"{n + 1}"} for n in range(20)], {"prompt": "{prompt}"}),
        ([{"instruction": f"{n} + 1", "output": f"{n + 1}"} for n in range(20)], {"target": "{output}"}),
        (
            [
                {"messages": [{"role": "user", "content": f"hi {n}"}, {"role": "assistant", "content": "yes"}]}
                for n in range(20)
            ],
            {"messages": "messages", "metric": "exact_match"},
        ),
        (
            [{"page": f"It was a dark night, {n}."} for n in range(20)],
            {"text": "page", "metric": "perplexity"},
        ),
    ],
)
def test_json_lines_for_a_language_model(folder, rows, keys):
    jsonl(folder / "a.jsonl", rows)
    assert "family: causal-lm" in command("new", "--from", "a.jsonl", "--base", "org/decoder").stdout
    recipe = load_recipe("a.yaml")
    assert (recipe.base.family, recipe.base.model) == ("causal-lm", "org/decoder")
    assert (
        f"  max_length: {recipe.base.max_length} # most tokens of a row; a longer one is refused\n"
        in (folder / "a.yaml").read_text()
    )
    assert {key: getattr(recipe.tasks[0], key) for key in keys} == keys


def test_words_with_tags(folder):
    jsonl(folder / "a.jsonl", [{"tokens": ["a", f"b{n}"], "tags": ["O", "B-X"]} for n in range(20)])
    assert "family: token-classification" in command("new", "--from", "a.jsonl", "--base", "bert").stdout


def test_folders_of_images(folder):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "pets" / split / name).mkdir(parents=True)
            for n in range(5):
                (folder / "pets" / split / name / f"{n}.png").write_bytes(f"{split}{name}{n}".encode())
    command("new", "--from", "pets", "--base", "vit")
    assert load_recipe("pets.yaml").tasks[0].source.imagefolder == {"train": "pets/train", "test": "pets/test"}
    assert "max_length" not in (folder / "pets.yaml").read_text()
    shutil.move("pets/train", "cats")
    command("new", "--from", "cats", "--base", "vit")
    task = load_recipe("cats.yaml").tasks[0]
    assert (task.source.imagefolder, load_recipe("cats.yaml").base.family) == ("cats", "image-classification")


def test_several_files_are_several_tasks_which_are_fused(folder):
    write(folder / "a.csv")
    write(folder / "b.csv", [(n, text, "yes" if n % 2 else "no") for n, text, _ in REVIEWS])
    command("new", "--from", "a.csv", "--from", "b.csv", "--base", "bert", "-o", "both.yaml")
    recipe = load_recipe("both.yaml")
    assert [task.name for task in recipe.tasks] == ["a", "b"]
    assert [entry.method for entry in recipe.fusion.methods] == ["average", "task_arithmetic", "mean_norm"]
    plan = json.loads(command("run", "both.yaml", "--dry-run", "--json").stdout)
    assert plan["comparisons"] > 0


def test_test_rows_of_their_own(folder):
    write(folder / "a.csv")
    write(folder / "t.csv", REVIEWS[:9])
    command("new", "--from", "a.csv", "--test", "t.csv", "--base", "bert")
    assert load_recipe("a.yaml").tasks[0].source.csv == {"train": "a.csv", "test": "t.csv"}
    assert "test_fraction" not in (folder / "a.yaml").read_text()


def test_in_a_terminal_it_asks(folder, monkeypatch):
    write(folder / "a.csv", names=("id", "worte", "ton"))
    asked = []
    answers = {"File": "a.csv", "Base": "bert", "Recipe": "mine.yaml"}

    def answer(question, default, err):
        assert err
        asked.append(question.split(" (")[0])
        return next((said for word, said in answers.items() if question.startswith(word)), default)

    monkeypatch.setattr(tangora.cli.new.typer, "prompt", answer)
    monkeypatch.setattr(tangora.cli.new, "_is_terminal", lambda: True)
    command("new")
    assert asked == [
        "File of rows, or folder of images",
        "Family",
        "Column of texts",
        "Column of labels",
        "Base model",
        "Recipe",
    ]
    assert load_recipe("mine.yaml").tasks[0].text == "worte"
    asked.clear()
    given = ("--from", "a.csv", "--text", "worte", "--label", "ton", "--family", "text-classification")
    command("new", *given, "--base", "bert", "--out", "other.yaml")
    assert asked == [], "all is given"


def test_what_is_refused_and_nothing_is_written(folder):
    write(folder / "a.csv")
    write(folder / "one.csv", [(n, text, "good") for n, text, _ in REVIEWS])
    write(folder / "gap.csv", [*REVIEWS, (60, "more", "")])
    write(folder / "few.csv", REVIEWS[:2])
    write(folder / "numbers.csv", [(n, n * 2, n * 3) for n in range(9)])
    (folder / "a.txt").write_text("x")
    base = ("--base", "bert", "--out", "r.yaml")
    for arguments, kind, words in (
        ((), ArgumentError, "--from and --base missing"),
        (("--from", "a.csv"), ArgumentError, "--base missing"),
        (("--from", "nope.csv", *base), DataError, "file not found"),
        (("--from", "a.txt", *base), DataError, "kind of the file is unknown"),
        (("--from", "a.csv", "--text", "reviw", *base), DataError, "Did you mean 'review'"),
        (("--from", "a.csv", "--family", "text", *base), ArgumentError, "no such family"),
        (("--from", "one.csv", *base), DataError, "at least 2 classes"),
        (("--from", "gap.csv", *base), DataError, "line 62"),
        (("--from", "few.csv", *base), DataError, "too few rows"),
        (("--from", "numbers.csv", *base), DataError, "no column for text"),
        (("--from", "a.csv", "--from", "a.csv", "--test", "a.csv", *base), ArgumentError, "one file of rows"),
        (("--from", "a.csv", "--base", "bert", "--out", "a.csv", "--overwrite"), OutputError, "is an input"),
    ):
        error = refused("new", *arguments)
        assert isinstance(error, kind), (arguments, error)
        assert words.lower() in str(error).lower(), (arguments, error)
    assert not (folder / "r.yaml").exists()
    command("new", "--from", "a.csv", *base)
    assert "the output exists" in str(refused("new", "--from", "a.csv", *base))


def test_a_notebook_is_not_asked(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert tangora.cli.new._is_terminal()
    monkeypatch.setenv("JPY_PARENT_PID", "7")
    assert not tangora.cli.new._is_terminal(), "nobody can answer there, and the cell would wait for ever"
