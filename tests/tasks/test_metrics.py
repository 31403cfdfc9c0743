from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tangora.errors import ArgumentError, PluginError
from tangora.tasks import METRICS, score
from tangora.tasks.metrics import bootstrap, resampled
from tangora.tasks.metrics.accuracy import Accuracy
from tangora.tasks.metrics.micro_f1 import MicroF1
from tangora.tasks.metrics.mse import Mse
from tangora.tasks.metrics.perplexity import Perplexity
from tangora.tasks.metrics.span_f1 import SpanF1
from tangora.testing import check_metric


def test_accuracy_and_macro_f1_are_scikit_learns():
    draw = np.random.default_rng(0)
    predictions, targets = draw.integers(0, 4, 60), draw.integers(0, 5, 60)
    assert score("accuracy", predictions, targets) == pytest.approx(accuracy_score(targets, predictions))
    expected = f1_score(targets, predictions, average="macro", zero_division=0)
    assert score("macro_f1", predictions, targets) == pytest.approx(expected)


def test_matthews_by_hand():
    # tp 1, tn 2, fp 1, fn 1: (1*2 - 1*1) / sqrt(2 * 2 * 3 * 3)
    assert score("matthews", [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]) == pytest.approx(1 / 6)


def test_matthews_of_texts():
    assert score("matthews", ["yes", "no", " no"], ["yes", "no", "no"]) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", ["macro_f1", "matthews", "accuracy"])
def test_a_class_is_the_predicted_reference_or_the_first(metric):
    predictions, chosen = ["yes", "no", "no", "maybe"], ["yes", "no", "yes", "no"]
    several = [("no", " yes"), "no", ("yes", "maybe"), ("no", "yes")]
    assert score(metric, predictions, several) == pytest.approx(score(metric, predictions, chosen))


def test_exact_match_ignores_surrounding_white_space_only():
    assert score("exact_match", [" yes", "No", "no\n"], ["yes", "no", "no"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        (["0.5", "1", "3.0"], 1.0),
        (["3", "2", "1"], -1.0),
        (["none", "1", "2"], 1.0),
        (["nan", "1", "2"], 1.0),
        (["a", "b", "c"], 0.0),
    ],
)
def test_spearman_reads_texts_as_numbers(predictions, expected):
    assert score("spearman", predictions, ["1.0", "2.0", "4.0"]) == pytest.approx(expected)


def test_unknown_metric_names_the_nearest():
    with pytest.raises(PluginError, match=r"no such metric, got 'accurracy'\. Did you mean 'accuracy'"):
        score("accurracy", [1], [1])


@pytest.mark.parametrize(("predictions", "targets"), [([], []), ([1], [1, 0])])
@pytest.mark.parametrize("metric", METRICS)
def test_rows_must_agree(metric, predictions, targets):
    with pytest.raises(ArgumentError, match="one prediction for each"):
        score(metric, predictions, targets)


def test_references_need_one_text():
    with pytest.raises(ArgumentError, match=r"a row has no reference, got '\(\) as target 1'"):
        score("exact_match", ["a", "b"], ["a", ()])


def test_the_table_of_the_docs_is_complete():
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    if not page.is_file():
        pytest.skip("not in a checkout")
    lines = [
        re.split(r"(?<!\\)\|", line) for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    table = {name.strip(" `"): [cell.strip() for cell in cells] for _, name, *cells, _ in lines}
    assert set(table) == {*METRICS}
    for name, (answers, _, better, definition, _) in table.items():
        metric = METRICS.get(name)
        assert set(answers.split(", ")) == metric.takes
        assert better == ("higher" if metric.higher_is_better else "lower")
        assert definition


@pytest.mark.parametrize("name", METRICS)
def test_the_contract_holds(name):
    assert METRICS.get(name).name == name
    check_metric(METRICS.get(name))


@pytest.mark.parametrize("rows", [1, 2, 40, 300])
@pytest.mark.parametrize("name", [name for name in METRICS if "classes" in METRICS.get(name).takes])
def test_a_bootstrap_is_the_loop_over_resamples(name, rows):
    draw = np.random.default_rng(rows)
    targets = draw.integers(0, 7, rows).tolist()
    predictions = draw.integers(0, 8, rows).tolist()  # a class that no target has
    counts = np.stack([np.bincount(draw.integers(0, rows, rows), minlength=rows) for _ in range(30)])
    expected = resampled(METRICS.get(name), predictions, targets, counts)
    np.testing.assert_allclose(bootstrap(name, predictions, targets, counts), expected, rtol=1e-12, atol=1e-12)


def test_large_bootstraps_are_worked_on_in_blocks(monkeypatch):
    draw = np.random.default_rng(0)
    predictions, targets = draw.integers(0, 3, 50).tolist(), draw.integers(0, 3, 50).tolist()
    counts = draw.multinomial(50, [1 / 50] * 50, size=11)
    whole = bootstrap("macro_f1", predictions, targets, counts)
    monkeypatch.setattr("tangora.tasks.metrics._counts._BLOCK", 120)
    np.testing.assert_array_equal(bootstrap("macro_f1", predictions, targets, counts), whole)


class Biased(Accuracy):
    def bootstrap(self, predictions, targets, counts, /):
        return super().bootstrap(predictions, targets, counts) + 0.01


class Ordered(Accuracy):
    def score(self, predictions, targets, /):
        return float(predictions[0] == targets[0])


class Upside(Accuracy):
    higher_is_better = False


class Sorting(Accuracy):
    def score(self, predictions, targets, /):
        predictions.sort()
        return super().score(predictions, targets)


class Single(Accuracy):
    """Compares texts as if no row had several references."""

    def score(self, predictions, targets, /):
        return sum(p == t for p, t in zip(predictions, targets, strict=True)) / len(targets)


class First(Accuracy):
    """Takes the first reference of a row for the only one."""

    def score(self, predictions, targets, /):
        return super().score(predictions, [t[0] if isinstance(t, tuple) else t for t in targets])

    def bootstrap(self, predictions, targets, counts, /):
        return super().bootstrap(predictions, [t[0] if isinstance(t, tuple) else t for t in targets], counts)


class Negative(Mse):
    """A perfect score below 0, of which nothing can be a share."""

    def score(self, predictions, targets, /):
        return super().score(predictions, targets) - 1


class Equal(Perplexity):
    """Every row counts the same, however long; the bootstrap weighs them by their tokens."""

    def score(self, predictions, targets, /):
        return float(np.mean([np.exp(nats / tokens) for nats, tokens in predictions]))


class Concatenated(SpanF1):
    """Lets a span go on in the next row."""

    def score(self, predictions, targets, /):
        joined = ([tag for row in rows for tag in row] for rows in (predictions, targets))
        return super().score(*([row] for row in joined))


class Counted(MicroF1):
    """Compares how many labels there are."""

    def bootstrap(self, predictions, targets, counts, /):
        return super().bootstrap([range(len(p)) for p in predictions], [range(len(t)) for t in targets], counts)

    def score(self, predictions, targets, /):
        return MicroF1().score(predictions, targets)


class Confused(Accuracy):
    takes = frozenset({"words"})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Biased(), "bootstrap gives"),
        (Ordered(), "the order of rows changes the score"),
        (Upside(), "lower is better, but perfect predictions score 1.0"),
        (Sorting(), "score changes its arguments"),
        (Single(), "a tuple of one reference changes the score"),
        (First(), "the last of several references scores"),
        (Negative(), r"perfect predictions score -1\.0, below 0"),
        (Equal(), "bootstrap gives"),
        (Concatenated(), "the order of rows changes the score"),
        (Counted(), "bootstrap gives"),
        (Confused(), "kinds are"),
    ],
)
def test_the_suite_catches_a_broken_metric(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_metric(broken)
