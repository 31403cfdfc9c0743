"""Metrics of texts against cases by hand, and against their definitions written out in another way."""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tangora.errors import MissingExtraError
from tangora.support import extras
from tangora.tasks import METRICS, score
from tangora.tasks.metrics import bleu, bootstrap, chrf, resampled
from tangora.tasks.metrics._rows import TextScore
from tangora.tasks.metrics._texts import common, distance
from tangora.tasks.metrics.numeric import _value

TEXTS = [name for name in METRICS if "text" in METRICS.get(name).takes]
ROUNDED = 1e-12  # a score of some hundred terms between 0 and 1 is rounded by less


def sentences(seed: int, rows: int = 40, *, most: int = 9) -> tuple[list[str], list[tuple[str, ...]]]:
    """Texts of few words, so that many match, and one to three references of each."""
    draw = random.Random(seed)
    words = ["a", "The", "cat", "cat's", "Cat,", "sat", "on_it", "Straße", "STRASSE", "é", "1,5", "!", "?!", "  "]

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randrange(most))).strip()

    predictions = [sentence() for _ in range(rows)]
    targets = [tuple(sentence() for _ in range(draw.randint(1, 3))) for _ in range(rows)]
    same = [t if draw.random() < 0.8 else (*t, p) for p, t in zip(predictions, targets, strict=True)]
    return predictions, same


def best(of_text, predictions, targets) -> float:
    rows = [max(of_text(p, r) for r in t) if p else 0.0 for p, t in zip(predictions, targets, strict=True)]
    return sum(rows) / len(rows)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TEXTS)
def test_a_bootstrap_is_the_loop_over_resamples(name, seed):
    predictions, targets = sentences(seed, 30)
    counts = np.random.default_rng(seed).multinomial(30, [1 / 30] * 30, size=10)
    expected = resampled(METRICS.get(name), predictions, targets, counts)
    np.testing.assert_allclose(bootstrap(name, predictions, targets, counts), expected, rtol=ROUNDED, atol=ROUNDED)


@pytest.mark.parametrize("name", sorted({*TEXTS} - {"spearman", "pearson", "json_equal", "slot_f1"}))
def test_any_reference_is_as_good_as_a_single_one(name):
    predictions = ["so it is 5 metres to the door", "no, it is at most 12 of them", "5"]
    others = [(f"another {p}", f" {p}\n", "more") for p in predictions]
    assert score(name, predictions, others) == pytest.approx(score(name, predictions, predictions), rel=ROUNDED)
    assert score(name, predictions, others) == pytest.approx(1.0, rel=ROUNDED)


@pytest.mark.parametrize("name", [name for name in TEXTS if isinstance(METRICS.get(name), TextScore)])
def test_an_empty_text_is_wrong(name):
    assert score(name, ["", " \n"], ["", ("", "a")]) == 0.0


@pytest.mark.parametrize(
    ("text", "reference", "plain", "space", "casefold", "words"),
    [
        ("a b", "a b", 1, 1, 1, 1),
        ("  a b\n", "a b", 1, 1, 1, 1),
        ("a \t b", "a b", 0, 1, 1, 1),
        ("A b", "a b", 0, 0, 1, 1),
        ("Straße", "STRASSE", 0, 0, 1, 1),
        ("a b; ;", "a b", 0, 0, 1, 1),
        ("; a b", "a b", 0, 0, 0, 1),
        ("a, b.", "(a)_b?", 0, 0, 0, 1),
        ("ab", "a b", 0, 0, 0, 0),
        ("a b", "a b c", 0, 0, 0, 0),
        ("x²", "x2", 0, 0, 0, 0),
    ],
)
def test_exact_matches(text, reference, plain, space, casefold, words):
    names = ["exact_match", "exact_match_space", "exact_match_casefold", "exact_match_words"]
    assert [score(name, [text], [reference]) for name in names] == [plain, space, casefold, words]


def longest(one, other) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def edits(one, other) -> int:
    table = [[i + j for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = min(table[i][j] + (a != b), table[i][j + 1] + 1, table[i + 1][j] + 1)
    return table[-1][-1]


@pytest.mark.parametrize("length", [4, 12, 150])
def test_sequences_are_compared_as_by_the_tables_of_the_dynamic_programs(length):
    draw = random.Random(length)
    for _ in range(400 if length < 100 else 4):
        one, other = (draw.choices(range(4), k=draw.randrange(length)) for _ in range(2))
        assert common(one, other) == longest(one, other), (one, other)
        assert distance(one, other) == edits(one, other), (one, other)


def test_edit_similarity():
    # walk LEFT run -> walk right run run: one word is replaced, one inserted, of 4
    assert score("edit_similarity", ["walk LEFT run"], ["Walk right run run"]) == 0.5
    assert score("edit_similarity", ["a b"], ["c d e"]) == 0.0
    predictions, targets = sentences(0, 200)

    def of_text(text, reference):
        one, other = text.casefold().split(), reference.casefold().split()
        return 1 - edits(one, other) / max(len(one), len(other))

    assert score("edit_similarity", predictions, targets) == pytest.approx(best(of_text, predictions, targets))


def test_rouge_l():
    # the cat | sat | on the mat: 5 of 6 and 6 words are common, in this order
    assert score("rouge_l", ["The cat sat, on the mat"], ["the cat is on the mat"]) == pytest.approx(10 / 12)
    assert score("rouge_l", ["?"], ["!"]) == 0.0
    predictions, targets = sentences(1, 200)

    def of_text(text, reference):
        one, other = (re.findall(r"\w+", one.casefold()) for one in (text, reference))
        return 2 * longest(one, other) / (len(one) + len(other)) if one or other else 0.0

    assert score("rouge_l", predictions, targets) == pytest.approx(best(of_text, predictions, targets))


def squad(text: str, reference: str) -> float:
    """SQuAD's F1 from precision and recall, with the text normalized character by character."""
    kept = ("".join(c for c in one.lower() if c not in set(string.punctuation)) for one in (text, reference))
    one, other = ([word for word in line.split() if word not in ("a", "an", "the")] for line in kept)
    same = sum(min(one.count(word), other.count(word)) for word in set(one))
    if same == 0:
        return 0.0
    precision, recall = Fraction(same, len(one)), Fraction(same, len(other))
    return float(2 * precision * recall / (precision + recall))


def test_token_f1():
    # eiffel tower in paris / eiffel tower: precision 2/4, recall 1
    assert score("token_f1", ["The Eiffel Tower, in Paris."], ["Eiffel tower"]) == pytest.approx(2 / 3)
    # each word as often as in both: 1 of 2 and 1 words
    assert score("token_f1", ["no no"], ["no"]) == pytest.approx(2 / 3)
    assert score("token_f1", ["the"], ["the"]) == 0.0, "as in SQuAD's script, which has no word left"
    predictions, targets = sentences(2, 200)
    assert score("token_f1", predictions, targets) == pytest.approx(best(squad, predictions, targets))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(3 + 4) * 2", 14),
        ("3+4*2", 11),
        ("-(-3) - -4", 7),
        ("8 / 3", 8 / 3),
        ("2 × 6 ÷ 4", 3),
        ("$1,200 + .5", 1200.5),
        ("5 + 3 = 9", 8),
        ("x = 3 - 4 = -1", -1),
        ("so it is 12", 12),
        ("12 apples, or 3.50 each", 3.5),
        ("between 3-4", -4),
        ("2 * 3 metres", 3),
        ("2 2", 2),
        ("007", 7),
        ("3 ** 4", 4),
        ("7 // 2", 2),
        ("+5", 5),
        ("(1, 2)", 2),
        ("(1,2)", 12),
        ("(3)(4)", 4),
        ("...", None),
        ("()", None),
        ("many", None),
        ("1 / 0", None),
        ("1 / (2 - 2) + 3", None),
    ],
)
def test_values_of_texts(text, value):
    found = _value(text)
    assert found == (None if value is None else pytest.approx(value, rel=1e-15))


def test_numeric():
    # 0.001 of values above 1, and 0.001 itself below
    predictions = ["1001", "1001.1", "0.001", "0.0011", "none", "2 * 3"]
    assert score("numeric", predictions, ["1000", "1000", "0", "0", "none", ("5", "12 / 2")]) == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    "text",
    [
        "9 ** 9 ** 9 ** 9",
        "(" * 100_000,
        "(" * 149 + "1" + ")" * 149,
        "-" * 299 + "1",
        "1" + "+1" * 149,
        "1" * 100_000,
        "9" * 300,
        "1 * " * 50_000 + "1",
        "__import__('os').getcwd()",
        "[" * 5000,
        "1e999",
    ],
    ids=lambda text: text[:8],
)
def test_numeric_is_bounded(text):
    assert score("numeric", [text, text + "=", "=" + text], ["no", "no", "no"]) == 0.0


@pytest.mark.parametrize(
    ("text", "equal"),
    [
        ('{"a": 1, "b": "New York"}', 1),
        ('{"b":"new  york","A":1}', 1),
        ('Sure: {"a": 1, "b": "New York"} is it.', 1),
        ('{"a": "1", "b": "New York"}', 1),
        ('{"a": 1.0, "b": "New York"}', 0),
        ('{"a": 1}', 0),
        ('{"a": 1, "b": "New York", "c": null}', 0),
        ('{"a": 1, "b": "New York"', 0),
        ('{"a": 1, "b": "New York"} {}', 0),
        ('[1, "New York"]', 0),
        ("} {", 0),
        ("none", 0),
        ("{" * 5000 + "}" * 5000, 0),
        ('{"a": ' * 5000 + "1" + "}" * 5000, 0),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_equal(text, equal):
    assert score("json_equal", [text], ['{"a": 1, "b": "New York"}']) == equal


def test_nested_values_are_compared_as_json():
    one, same, other = (
        '{"a": [1, {"x": 1, "y": "É"}]}',
        '{"a": [1, {"y": "é", "x": 1}]}',
        '{"a": [{"x": 1, "y": "É"}, 1]}',
    )
    assert score("json_equal", [one, one, one], [same, other, (other, same)]) == pytest.approx(2 / 3)
    assert score("json_equal", ["none", "none"], ["none", "[1]"]) == 0.0, "a reference without an object is no match"


def test_slot_f1():
    # 1 of 2 and 3 pairs is common; 0 of 0 and 1; 1 of 1 and 1 by the second reference
    predictions = ['{"a": 1, "b": 2}', "no object", '{"a": 5}']
    targets = ['{"a": 1, "b": 3, "c": 4}', '{"a": 1}', ('{"a": 5, "b": 5, "c": 5}', '{"a": 5}')]
    assert score("slot_f1", predictions, targets) == pytest.approx(2 * 2 / (5 + 1 + 2))
    assert score("slot_f1", ["{}"], ["{}"]) == 0.0


def papineni(predictions, targets) -> float:
    """BLEU-4 without smoothing, straight from its definition."""
    tokens = [re.findall(r"\w+|[^\w\s]", text.casefold()) for text in predictions]
    of_references = [[re.findall(r"\w+|[^\w\s]", text.casefold()) for text in target] for target in targets]

    def ngrams(words, n):
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    logs = 0.0
    for n in range(1, 5):
        matches = total = 0
        for words, correct in zip(tokens, of_references, strict=True):
            total += max(len(words) - n + 1, 0)
            matches += sum(min(c, max(ngrams(r, n)[g] for r in correct)) for g, c in ngrams(words, n).items())
        if not matches:
            return 0.0
        logs += math.log(matches / total) / 4
    length = sum(map(len, tokens))
    nearest = sum(
        min((abs(len(r) - len(words)), len(r)) for r in correct)[1]
        for words, correct in zip(tokens, of_references, strict=True)
    )
    return math.exp(min(0.0, 1 - nearest / length) + logs)


def test_bleu_by_hand():
    text = "the cat sat on the mat"
    # all but one "the"; the cat, cat sat, sat on; the cat sat, cat sat on; the cat sat on
    assert score("bleu", [text], ["The cat sat on a mat"]) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # all six words, as the second reference has "the" twice; all five pairs; all triples but "sat on the"; one of three
    several = ("The cat sat on a mat", "the cat sits on the mat")
    assert score("bleu", [text], [several]) == pytest.approx((3 / 4 * 1 / 3) ** 0.25)
    # everything matches, and the text is shorter: exp(1 - 6/4)
    assert score("bleu", ["the cat sat on"], ["the cat sat on a mat"]) == pytest.approx(math.exp(-0.5))
    # lengths 4 and 6 are as near to 5, and the shorter counts: no brevity
    assert score("bleu", ["the cat sat on a"], [("the cat sat on a mat", "a b c d")]) == pytest.approx(1.0)
    assert score("bleu", ["a b c", "a b"], ["a b c", "a b"]) == 0.0, "there is no run of four words"
    assert score("bleu", ["", ""], ["a b c d", ""]) == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_bleu_is_its_definition_and_sacrebleus(seed):
    predictions, targets = sentences(seed, 60, most=12)
    expected = papineni(predictions, targets)
    assert expected > 0
    assert score("bleu", predictions, targets) == pytest.approx(expected, rel=1e-10)
    tokenized = [" ".join(re.findall(r"\w+|[^\w\s]", text.casefold())) for text in predictions]
    streams = [
        [" ".join(re.findall(r"\w+|[^\w\s]", t[k].casefold())) if k < len(t) else None for t in targets]
        for k in range(max(map(len, targets)))
    ]
    library = BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(tokenized, streams).score / 100
    assert score("bleu", predictions, targets) == pytest.approx(library, rel=1e-10)


def popovic(text: str, reference: str) -> float:
    one, other = ("".join(line.split()) for line in (text, reference))
    precisions, recalls = [], []
    for n in range(1, 7):
        grams, correct = (Counter(line[i : i + n] for i in range(len(line) - n + 1)) for line in (one, other))
        if grams and correct:
            same = sum((grams & correct).values())
            precisions.append(same / sum(grams.values()))
            recalls.append(same / sum(correct.values()))
    p, r = (sum(values) / len(values) if values else 0.0 for values in (precisions, recalls))
    return 5 * p * r / (4 * p + r) if p or r else 0.0


def test_chrf_by_hand():
    # a b c / a b d: of one character 2 of 3, of two 1 of 2, of three 0 of 1, both ways: P = R = (2/3 + 1/2) / 3
    assert score("chrf", ["ab c"], ["a bd"]) == pytest.approx(7 / 18)
    # ab / abcd: P = 1; R = 2/4 and 1/3, over the orders that both have: 5 R / (4 + R)
    recall = (2 / 4 + 1 / 3) / 2
    assert score("chrf", ["ab"], ["abcd"]) == pytest.approx(5 * recall / (4 + recall))
    assert score("chrf", ["AB"], ["ab"]) == 0.0, "case counts"


def test_chrf_is_its_definition_and_sacrebleus():
    predictions, targets = sentences(3, 150)
    assert score("chrf", predictions, targets) == pytest.approx(best(popovic, predictions, targets), rel=1e-10)
    library = [CHRF().sentence_score(p, list(t)).score / 100 for p, t in zip(predictions, targets, strict=True)]
    assert score("chrf", predictions, targets) == pytest.approx(sum(library) / 150, rel=1e-10)


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_sacrebleu_is_an_extra(name, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    for module in (bleu, chrf):
        module._sacrebleu.cache_clear()
    with pytest.raises(MissingExtraError, match=rf"the metric {name} needs .* pip install 'tangora\[lm\]'"):
        score(name, ["a"], ["a"])
