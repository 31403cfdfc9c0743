"""What goes into the fusion explorer: packed logits, presets, examples; and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
import yaml
from explorer_run import CLASSES, make_run, weights
from test_page import bare_run
from typer.testing import CliRunner

from tangora.cli import commands as cli
from tangora.config.recipe import load_recipe
from tangora.errors import ArgumentError, FileError, RecipeError
from tangora.report import _examples, _pack, explorer, html
from tangora.report.data import read_run
from tangora.report.summary import Summary
from tangora.support.seams import METRICS
from tangora.tangent.columns import Columns, load_columns

SMALL = {"a": 3, "b": 2}


@pytest.fixture
def small(tmp_path):
    return make_run(tmp_path / "run", SMALL, {"validation": 12, "test": 18})


def content(page) -> dict:
    text = page.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


@pytest.mark.parametrize("bits", _pack.BITS)
@pytest.mark.parametrize("classes", [2, 3, 77])
def test_packing_loses_half_a_step_at_most(bits, classes):
    generator = torch.Generator().manual_seed(classes)
    origin = 20 * torch.randn(31, classes, generator=generator) + 100
    columns = torch.randn(3, 31, classes, generator=generator) * torch.tensor([1e-20, 1e-3, 7.0])[:, None, None]
    columns[1, 4] = 0
    labels = torch.zeros(31, dtype=torch.int64)
    values = _pack.stacked(Columns("t", "test", ("a", "b", "c"), (), origin, columns, labels, labels, ""))
    packed = _pack.pack(values, bits)
    assert len(packed) == -(-4 * 31 * (2 * 8 + classes * bits) // 8) - 4 * 31  # one exponent a row and column
    error = np.abs(_pack.unpack(packed, values.shape, bits) - values)
    assert (error <= np.abs(values).max(-1, keepdims=True) * 2.0 ** (1 - bits) + 1e-30).all()


@pytest.mark.parametrize(("bits", "most"), [(24, 0.0), (20, 0.001), (16, 0.001)])
def test_accuracy_moves_by_a_tenth_of_a_point_at_most(tmp_path, bits, most):
    """Over many coefficients; one row of 500 is already two tenths."""
    folder = make_run(tmp_path / "run", CLASSES, {"validation": 500, "test": 4})
    generator = torch.Generator().manual_seed(0)
    many = 2 * torch.rand(50, len(CLASSES), generator=generator) - 0.5
    means = []
    for task in CLASSES:
        columns = load_columns(folder / "cache" / "columns" / "tangent" / f"{task}-validation.safetensors")
        values = _pack.stacked(columns)
        read = torch.from_numpy(_pack.unpack(_pack.pack(values, bits), values.shape, bits))
        ours = (read[0] + torch.tensordot(many, read[1:], 1)).argmax(-1)
        means.append((ours == columns.labels).float().mean(-1) - accuracy(columns, many))
    assert torch.stack(means).mean(0).abs().max() <= most
    assert torch.stack(means).abs().mean() <= most / 10


def accuracy(columns: Columns, many: torch.Tensor) -> torch.Tensor:
    return (columns.logits(many).argmax(-1) == columns.labels).float().mean(-1)


def broad(rows: int) -> dict[str, dict[str, Columns]]:
    """Seven tasks of 77 classes without the memory for them."""
    labels = torch.arange(rows)
    origin = torch.zeros(1, 1).expand(rows, 77)
    columns = torch.zeros(1, 1, 1).expand(7, rows, 77)
    names = tuple(CLASSES)
    own = Columns("t", "test", names, (), origin, columns, labels % 77, labels, "")
    return {name: {split: replace(own, task=name, split=split) for split in explorer.SPLITS} for name in names}


@pytest.mark.parametrize(("rows", "bits", "kept"), [(300, 24, 300), (500, 20, 500), (600, 16, 600), (5000, 16, None)])
def test_as_many_bits_as_fit_and_then_as_many_rows(tmp_path, rows, bits, kept):
    recipe = load_recipe(make_run(tmp_path / "run", SMALL, {"validation": 6, "test": 6}) / "recipe.yaml")
    chosen = explorer._Content(recipe, "tangent", [])
    read = broad(rows)
    explorer._fit(chosen, read)
    sizes = {len(split.columns.labels) for splits in chosen.splits.values() for split in splits.values()}
    assert chosen.bits == bits
    assert len(sizes) == 1
    assert sizes == {kept} or (kept is None and 550 < sizes.pop() < 650)
    assert bool(chosen.notes) == (kept is None)
    taken = [s.columns for splits in chosen.splits.values() for s in splits.values()]
    assert sum(_pack.packed_size(c, bits) for c in taken) * 4 / 3 < 15e6 - 300_000


def test_presets_are_those_of_linear_methods(small):
    found = content(explorer.build(small))["presets"]
    single, hub = found
    assert (single["label"], single["tasks"], single["weights"]) == ("best single λ", ["a", "b"], [0.5, 0.5])
    assert (hub["label"], hub["weights"]) == ("LoraHub", weights(["a", "b"]))


def test_one_coefficient_that_was_given_is_not_called_the_best(small):
    rows = list(csv.DictReader((small / "scores.csv").open()))
    for row in rows:
        row["selection"] = "given" if row["selection"] == "validation" else row["selection"]
    with (small / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    page = content(explorer.build(small))
    assert page["single"] not in [preset["label"] for preset in page["presets"]]
    assert ["a", "b"] in [preset["tasks"] for preset in page["presets"]]


def test_presets_leave_out_oracles_and_weights_per_site(small):
    rows = list(csv.DictReader((small / "scores.csv").open()))
    rows[1]["selection"] = "oracle"
    rows[3]["coefficients"] = json.dumps({"weights": {"layer.0": [0.1, 0.2]}})
    with (small / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert content(explorer.build(small))["presets"] == []


def test_examples_are_the_rows_of_the_recipe(small):
    tasks = content(explorer.build(small))["tasks"]
    assert tasks[0]["classes"] == ["<a> kind 0", "<a> kind 1", "<a> kind 2"]
    texts = tasks[0]["splits"]["test"]["examples"]
    assert len(texts) == 18
    assert texts[7].startswith("test 7: the train to Lyon")


def test_examples_that_are_gone_are_numbers(small):
    shutil.rmtree(small / "data")
    page = explorer.build(small)
    assert content(page)["tasks"][1]["splits"]["test"]["examples"] is None
    assert "b: its rows are not at hand now (file not found); numbers stand in." in page.read_text()


def test_examples_that_have_changed_are_numbers(small):
    path = small / "data" / "a-test.csv"
    path.write_text("text,label\n" + "other,1\n" * 18)
    page = explorer.build(small)
    assert content(page)["tasks"][0]["splits"]["test"]["examples"] is None
    assert "a: its rows have changed since the run; numbers stand in." in page.read_text()


def test_pictures_are_small_and_end_with_the_budget(image_data):
    from tangora.config.recipe import TaskConfig
    from tangora.tasks.load import read_rows

    files = {split: str(image_data / f"{split}.npz") for split in ("train", "test")}
    names = {"image": "images", "label": "labels", "labels": ["red", "green", "blue"]}
    config = TaskConfig(name="patches", source={"npz": files}, **names)
    table = read_rows(config, "image-zero-shot", 0)[1]["test"].table
    found = _examples.shown(table, config, "image-zero-shot", [3, 1, 2], 10_000)
    assert all(url.startswith("data:image/jpeg;base64,") and len(url) < 2500 for url in found)
    assert _examples.shown(table, config, "image-zero-shot", [3, 1, 2], len(found[0]) + 10) == [found[0], None, None]


def test_texts_are_shortened_to_their_share():
    assert _examples._shortened("a  b\nc", 5) == "a b c"
    assert _examples._shortened("one two three", 8) == "one two…"


def test_the_page_is_the_same_again_and_goes_where_it_is_asked(small, tmp_path):
    page = explorer.build(small)
    assert page == small / "explorer-tangent.html"
    assert explorer.build(small, "tangent", tmp_path / "there" / "page.html").read_bytes() == page.read_bytes()


def change(folder, **values):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | values))


def test_refused_in_one_line(small, tmp_path):
    with pytest.raises(ArgumentError, match=r"no cached logits of this mode, got 'lora' at .*There are tangent"):
        explorer.build(small, "lora")
    path = small / "cache" / "columns" / "tangent" / "a-test.safetensors"
    columns = load_columns(path)
    columns.origin[0, 0] = float("nan")
    columns.save(path)
    with pytest.raises(FileError, match=r"a cached logit is not finite at the columns of a, test"):
        explorer.build(small)
    replace(columns, vectors=("a", "other")).save(path)
    with pytest.raises(FileError, match=r"no column of a task vector, got 'b' at the columns of a, test"):
        explorer.build(small)
    assert not list(small.glob("explorer-*"))
    change(small, base={"family": "text-to-text", "model": "none"})
    with pytest.raises(RecipeError, match="no cached logits of classes"):
        explorer.build(small)
    shutil.rmtree(small / "cache")
    result = CliRunner().invoke(cli.app, ["explore", str(small)])
    assert "add modes.tangent: {linearize: model} and run again" in str(result.exception)
    with pytest.raises(FileError, match=r"not a run: recipe\.yaml is missing"):
        explorer.build(tmp_path)


def test_tasks_without_logits_are_left_out_and_named(tmp_path):
    folder = make_run(
        tmp_path / "run", {"a": 3, "b": 2, "c": 2}, {"validation": 12, "test": 12}, ("accuracy", "spearman")
    )
    (folder / "cache" / "columns" / "tangent" / "c-validation.safetensors").unlink()
    page = explorer.build(folder)
    assert [task["name"] for task in content(page)["tasks"]] == ["a", "b"]
    assert "c is left out: it has no cached logits." in page.read_text()


@pytest.fixture
def errors():
    """A metric of another package, which the page does not have."""
    metric = type(METRICS.get("accuracy"))
    METRICS.register("errors", type("Errors", (metric,), {"name": "errors", "higher_is_better": False})())
    yield
    METRICS.unregister("errors")


def test_a_metric_that_the_page_cannot_compute_is_replaced_and_named(tmp_path, errors):
    folder = make_run(tmp_path / "run", SMALL, {"validation": 12, "test": 12}, ("errors", "errors"))
    raw = yaml.safe_load((folder / "recipe.yaml").read_text())
    raw["tasks"][1]["metrics"] = ["errors", "macro_f1", "accuracy"]
    del raw["tasks"][1]["metric"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw))
    page = explorer.build(folder)
    assert [(task["name"], task["metric"]) for task in content(page)["tasks"]] == [("a", "accuracy"), ("b", "macro_f1")]
    assert "a is scored by accuracy on this page, which cannot compute errors." in page.read_text()
    assert "b is scored by macro_f1 on this page, which cannot compute errors." in page.read_text()


def test_the_page_has_every_metric_that_it_is_said_to_have():
    script = (files("tangora") / "report" / "explorer_model.js").read_text()
    (listed,) = re.findall(r"const METRICS = \{(.*)\};", script)
    assert tuple(part.partition(":")[0].strip() for part in listed.split(",")) == explorer._METRICS


def test_the_command_line_and_the_link_in_the_report(small, monkeypatch):
    built = []
    (small / "report.html").write_text("<p>old</p>")
    monkeypatch.setattr("tangora.report.build", lambda run: built.append(run) or small / "report.html")
    result = CliRunner().invoke(cli.app, ["explore", str(small)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("explorer: ")
    assert built == [small]
    (small / "report.html").write_text('<a href="explorer-tangent.html">')
    CliRunner().invoke(cli.app, ["explore", str(small)])
    assert built == [small]


def test_the_report_links_what_is_there(tmp_path):
    summary = Summary(read_run(bare_run(tmp_path)))
    assert "explorer" not in html.page(summary, [])
    (summary.run.path / "explorer-tangent.html").write_text("a page")
    assert 'href="explorer-tangent.html"' in html.page(summary, [])
