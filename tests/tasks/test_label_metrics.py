"""Metrics of rows with several labels, and of tags, against cases by hand and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from tangora.errors import ArgumentError
from tangora.tasks import METRICS, score
from tangora.tasks.metrics import bootstrap, resampled
from tangora.tasks.metrics._tags import spans

ROUNDED = 1e-12  # sums of some hundred terms are rounded by less than this, relatively
TAGS = ["O", "B-a", "I-a", "B-b", "I-b", "E-a", "S-a", "S-b"]


def labels(seed: int, rows: int = 60, classes: int = 6) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of any number of labels; the last class is only ever predicted."""
    draw = np.random.default_rng(seed)
    actual = draw.random((rows, classes)) < np.linspace(0.6, 0.0, classes)
    predicted = np.where(draw.random(actual.shape) < 0.7, actual, draw.random(actual.shape) < 0.3)
    return tuple([np.flatnonzero(row).tolist() for row in table] for table in (predicted, actual))


def tags(seed: int, rows: int = 40) -> tuple[list[list[str]], list[list[str]]]:
    draw = np.random.default_rng(seed)
    targets = [draw.choice(TAGS, draw.integers(0, 9)) for _ in range(rows)]
    predictions = [np.where(draw.random(len(t)) < 0.7, t, draw.choice(TAGS, len(t))) for t in targets]
    return [row.tolist() for row in predictions], [row.tolist() for row in targets]


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("accuracy", labels),
        ("micro_f1", labels),
        ("macro_f1", labels),
        ("tag_accuracy", tags),
        ("span_f1", tags),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_bootstrap_is_the_loop_over_resamples(name, drawn, rows):
    predictions, targets = drawn(rows, rows)
    counts = np.random.default_rng(rows).multinomial(rows, [1 / rows] * rows, size=20)
    expected = resampled(METRICS.get(name), predictions, targets, counts)
    np.testing.assert_allclose(bootstrap(name, predictions, targets, counts), expected, rtol=ROUNDED, atol=ROUNDED)


def test_labels_by_hand():
    predictions, targets = [[0, 2], [], [1]], [[0], [1], [1]]
    # of 3 predicted and 3 actual labels 2 are common
    assert score("micro_f1", predictions, targets) == pytest.approx(2 * 2 / 6)
    # class 0: 1 of 1 and 1; class 1: 1 of 1 and 2; class 2: 0 of 1 and 0
    assert score("macro_f1", predictions, targets) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert score("accuracy", predictions, targets) == pytest.approx(1 / 3)
    assert score("micro_f1", [[]], [[]]) == score("macro_f1", [[]], [[]]) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_labels_are_scored_as_by_scikit_learn(seed):
    predictions, targets = labels(seed)
    binarizer = MultiLabelBinarizer().fit([*predictions, *targets])
    given = binarizer.transform(targets), binarizer.transform(predictions)
    assert score("micro_f1", predictions, targets) == pytest.approx(f1_score(*given, average="micro"))
    expected = f1_score(*given, average="macro", zero_division=0)
    assert score("macro_f1", predictions, targets) == pytest.approx(expected)
    assert score("accuracy", predictions, targets) == pytest.approx(accuracy_score(*given))


def test_tags_by_hand():
    predictions = [["B-PER", "I-PER", "O", "B-LOC"], ["O"]]
    targets = [["B-PER", "I-PER", "O", "B-ORG"], ["B-LOC"]]
    assert score("tag_accuracy", predictions, targets) == pytest.approx(3 / 5)
    # of 2 predicted and 3 actual spans 1 is common
    assert score("span_f1", predictions, targets) == pytest.approx(2 * 1 / 5)
    assert score("span_f1", [["O"]], [["O"]]) == 0.0
    assert math.isnan(score("tag_accuracy", [[]], [[]]))


@pytest.mark.parametrize(
    ("row", "marked"),
    [
        ("", ""),
        ("O O", ""),
        ("B-a I-a O B-a", "a01 a33"),
        ("B-a B-a I-a", "a00 a12"),
        ("I-a I-a O I-a", "a01 a33"),
        ("B-a I-b I-b", "a00 b12"),
        ("I-a B-a", "a00 a11"),
        ("B-a I-a E-a I-a", "a02 a33"),
        ("S-a I-a E-a", "a00 a12"),
        ("S-a S-a E-b", "a00 a11 b22"),
        ("E-a E-a", "a00 a11"),
        ("B-x-y I-x-y I-x", "x-y01 x22"),
    ],
)
def test_spans(row, marked):
    """As (type, first word, last word), by conlleval's tables of where chunks start and end."""
    found = {f"{kind}{start}{end - 1}" for kind, start, end in spans(row.split())}
    assert found == set(marked.split())


def chunks(row: list[str]) -> set[tuple[str, int, int]]:
    """The chunks of a row by the rules of conlleval.pl, one condition after another."""
    found, begun = set(), None
    pieces = [(tag[0], tag[2:]) for tag in [*row, "O"]]
    for place, (tag, kind) in enumerate(pieces):
        before, earlier = pieces[place - 1] if place else ("O", "")
        pairs = {
            ("B", "B"),
            ("B", "O"),
            ("I", "B"),
            ("I", "O"),
            ("E", "E"),
            ("E", "I"),
            ("E", "O"),
            ("B", "S"),
            ("I", "S"),
        }
        ends = (before, tag) in pairs or before in "ES" or (before != "O" and earlier != kind)
        starts = tag in "BS" or (before in "ESO" and tag in "EI") or (tag != "O" and earlier != kind)
        if begun is not None and ends:
            found.add((earlier, begun, place))
            begun = None
        if starts:
            begun = place
    return found


@pytest.mark.parametrize("seed", range(4))
def test_spans_are_conllevals(seed):
    for row in tags(seed, 300)[0]:
        assert spans(row) == chunks(row), row


@pytest.mark.parametrize("seed", range(4))
def test_span_f1_is_the_harmonic_mean_of_precision_and_recall(seed):
    predictions, targets = tags(seed)
    found, actual = (
        {(i, *span) for i, row in enumerate(rows) for span in chunks(row)} for rows in (predictions, targets)
    )
    precision, recall = len(found & actual) / len(found), len(found & actual) / len(actual)
    expected = 2 * precision * recall / (precision + recall)
    assert score("span_f1", predictions, targets) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["tag_accuracy", "span_f1"])
def test_every_word_needs_a_tag(name):
    with pytest.raises(ArgumentError, match=r"one tag for each word, got '1 tags for 2 words in row 1' at " + name):
        score(name, [["O"], ["O"]], [["O"], ["O", "O"]])


@pytest.mark.parametrize("tag", ["NOUN", "O-a", "L-a", "", "BB-a", "b-a"])
def test_a_tag_that_marks_no_span_is_refused(tag):
    with pytest.raises(ArgumentError, match=r"a tag marks no span, got .* at span_f1\. Give tags such as B-PER"):
        score("span_f1", [["O", tag]], [["O", "O"]])
    assert score("tag_accuracy", [["O", tag]], [["O", "O"]]) == 0.5
