from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic import TASKS, make_run

from tangora.evaluation.tables import Row
from tangora.report.data import Run, read_run
from tangora.report.doubts import beaten_searches, notes
from tangora.report.headline import headline, kept_text, score_text
from tangora.report.means import Mean
from tangora.report.summary import Key, Summary, method_name
from tangora.support.seams import METRICS


def row(task: str, score: float, **changes) -> Row:
    given = Row(
        "lora", "ties", "delta", "a+b", 2, True, "validation", "", task, "test", "accuracy", score, 0.9, 0.8, None, None
    )
    return replace(given, **changes)


def expert(task: str, score: float, mode: str = "lora") -> Row:
    return row(task, score, method="expert", space="", subset=task, n_tasks=1, selection="none", mode=mode)


def summary_of(*rows: Row) -> Summary:
    return Summary(Run(path=None, scores=list(rows)))


KEY = Key("lora", "ties", "delta", "validation")


def test_means_are_computed_where_the_csv_has_none(tmp_path):
    given = Summary(read_run(make_run(tmp_path / "a", TASKS[:3])))
    computed = Summary(read_run(make_run(tmp_path / "b", TASKS[:3], with_means=False)))
    assert given.fused.keys() == computed.fused.keys()
    for key, subsets in given.fused.items():
        for subset, mean in subsets.items():
            other = computed.fused[key][subset]
            assert other.score == pytest.approx(mean.score, abs=1e-5)
            assert other.kept == pytest.approx(mean.kept, abs=1e-5)
            assert other.all_tasks == pytest.approx(mean.all_tasks, abs=1e-5)


def test_the_mean_over_a_subset_leaves_other_tasks_out():
    rows = [row("a", 0.8), row("b", 0.6), row("c", 0.1, in_subset=False)]
    mean = summary_of(*rows).fused[KEY]["a+b"]
    assert mean.score == pytest.approx(0.7)
    assert mean.all_tasks == pytest.approx(0.5)


def test_half_widths_of_independent_tasks_add_in_squares():
    rows = [row("a", 0.8, ci_low=0.77, ci_high=0.83), row("b", 0.6, ci_low=0.56, ci_high=0.64)]
    mean = summary_of(*rows).fused[KEY]["a+b"]
    assert (mean.low, mean.high) == (pytest.approx(0.675), pytest.approx(0.725))
    assert mean.kept_low == pytest.approx(0.675 * 0.9 / 0.7)


def test_validation_rows_are_left_out():
    assert summary_of(row("a", 0.8, split="validation")).fused == {}


def test_sizes_are_averaged_over_subsets():
    rows = [row("a", 0.8), row("b", 0.6), row("a", 0.5, subset="a+c"), row("c", 0.7, subset="a+c")]
    mean = summary_of(*rows).by_size(KEY)[2]
    assert mean.score == pytest.approx(0.65)
    assert (mean.subsets, mean.low) == (2, None)


def test_paired_intervals_come_from_summary_json():
    entry = {
        "subsets": 1,
        "absolute": 0.7,
        "absolute_low": 0.6,
        "absolute_high": 0.8,
        "kept": 0.9,
        "kept_low": 0.85,
        "kept_high": 0.95,
    }
    rows = [row("a", 0.8), row("b", 0.6)]
    run = Run(path=None, scores=rows, summary={("lora", "ties", "delta", "validation", 2): entry})
    mean = Summary(run).at_largest()[KEY]
    assert (mean.low, mean.high, mean.kept_low, mean.kept_high) == (0.6, 0.8, 0.85, 0.95)


def test_an_oracle_never_wins_and_is_not_drawn():
    rows = [row("a", 0.5), row("b", 0.5), row("a", 0.9, selection="oracle"), row("b", 0.9, selection="oracle")]
    summary = summary_of(*rows)
    assert summary.shown() == [KEY]
    assert summary.best(lambda m: m.score) == KEY


def test_an_oracle_alone_is_shown_with_its_mark():
    summary = summary_of(row("a", 0.9, selection="oracle"), row("b", 0.9, selection="oracle"))
    (key,) = summary.shown()
    assert key.name == "TIES †"
    assert "chosen on test" in headline(summary).sentences[0]


def test_the_headline_names_both_winners():
    strong = [row(t, 0.8, mode="full", normalized=0.85) for t in "ab"]
    weak = [row(t, 0.6, mode="l-lora", normalized=0.95) for t in "ab"]
    experts = [expert(t, 0.94, "full") for t in "ab"] + [expert(t, 0.63, "l-lora") for t in "ab"]
    top, keeper, base = headline(summary_of(*strong, *weak, *experts)).sentences
    assert top.startswith(
        "With 2 tasks fused, full fine-tuning with TIES scores 0.800 on average and keeps 85.0\u00a0%"
    )
    assert top.endswith("the best score of 2 fusions.")
    assert keeper == "L-LoRA with TIES keeps most of its own experts, 95.0\u00a0%, at a score of 0.600."
    assert base == "The experts, one per task, full 0.940, L-LoRA 0.630."


def test_the_headline_says_when_one_wins_both():
    better = [row(t, 0.8, normalized=0.95) for t in "ab"]
    worse = [row(t, 0.6, method="average", normalized=0.7) for t in "ab"]
    (sentence,) = headline(summary_of(*better, *worse)).sentences
    assert sentence.endswith("the best score, and the most kept, of 2 fusions.")


def test_overlapping_intervals_are_said():
    ends = {"ci_low": 0.78, "ci_high": 0.82}
    better = [row(t, 0.8, **ends) for t in "ab"]
    close = [row(t, 0.79, method="average", ci_low=0.77, ci_high=0.81) for t in "ab"]
    assert any("overlaps with that of one other fusion" in c for c in headline(summary_of(*better, *close)).caveats)
    far = [row(t, 0.5, method="average", ci_low=0.48, ci_high=0.52) for t in "ab"]
    assert not any("overlaps" in c for c in headline(summary_of(*better, *far)).caveats)


@pytest.fixture
def errors():
    """A metric of another package of which less is better."""
    metric = type(METRICS.get("accuracy"))
    METRICS.register("errors", type("Errors", (metric,), {"name": "errors", "higher_is_better": False})())
    yield
    METRICS.unregister("errors")


def test_metrics_that_point_in_different_directions_rank_no_mean(errors):
    ends = {"ci_low": 0.4, "ci_high": 0.6}

    def fusion(method, kept):  # few errors and a high accuracy have the same mean as the opposite
        return [row("a", 0.5, method=method, metric="errors", normalized=kept, **ends),
                row("b", 0.5, method=method, normalized=kept, **ends)]  # fmt: skip

    experts = [replace(expert("a", 0.1), metric="errors"), expert("b", 0.9)]
    summary = summary_of(*fusion("average", 0.7), *fusion("ties", 0.9), *experts)
    assert summary.direction == 0
    found = headline(summary)
    assert "LoRA with TIES" in found.sentences[0]
    assert found.sentences[0].endswith("the most kept of 2 fusions.")
    assert any("a mean score ranks nothing" in caveat for caveat in found.caveats)
    assert not any("best score" in caveat for caveat in found.caveats)
    assert [tile.label for tile in found.tiles] == ["Most kept"]


def test_of_errors_the_lowest_mean_is_best(errors):
    few = [row(t, 0.2, metric="errors", ci_low=0.18, ci_high=0.22) for t in "ab"]
    many = [row(t, 0.5, method="average", metric="errors", ci_low=0.48, ci_high=0.52) for t in "ab"]
    summary = summary_of(*many, *few)
    assert summary.direction == -1
    found = headline(summary)
    assert "LoRA with TIES scores 0.200" in found.sentences[0]
    assert not any("overlaps" in caveat for caveat in found.caveats), "the intervals are apart"


def test_a_run_without_fusion():
    found = headline(summary_of(expert("a", 0.9)))
    assert found.sentences == ["This run has experts and no fusion on the test split."]
    assert [(t.label, t.value) for t in found.tiles] == [("Best experts", "0.900")]


def test_texts():
    mean = Mean(2, 0.81234, 0.8, 0.82, 0.9, 0.89, 0.91, None, None)
    assert score_text(mean) == "0.812 [0.800,\u00a00.820]"
    assert kept_text(mean) == "90.0\u00a0% [89.0,\u00a091.0]"
    assert kept_text(replace(mean, kept=None)) == ""
    assert method_name("task_arithmetic", "factors") == "task arithmetic (factors)"
    assert method_name("mine") == "mine"


def zero(task: str, score: float) -> Row:
    return row(task, score, method="zero_shot", space="", subset="", n_tasks=0, selection="none", mode="-")


def test_kept_leaves_out_an_expert_worse_than_the_base_and_says_so():
    """Also of a run whose scores.csv has its share still, as an earlier version wrote it."""
    rows = [zero("a", 0.6), zero("b", 0.2), expert("a", 0.5), expert("b", 0.8)]
    rows += [row("a", 0.55, normalized=1.1), row("b", 0.4, normalized=0.5)]
    rows += [row("mean", 0.475, normalized=0.8, ci_low=0.4, ci_high=0.5)]
    summary = summary_of(*rows)
    assert summary.without_share == {("lora", "a"): "worse than zero-shot (0.500 against 0.600)"}
    mean = summary.fused[KEY]["a+b"]
    assert (mean.kept, mean.kept_low) == (0.5, None)
    assert summary.fused_scores(KEY, "a+b")["a"].normalized is None
    (said,) = notes(summary)
    assert said.startswith("The LoRA expert of a is worse than zero-shot")
    assert said in headline(summary).caveats


def searched(selection: str, method: str, weights: list[float], a: float, b: float, split: str = "test") -> list[Row]:
    about = {"method": method, "selection": selection, "coefficients": f'{{"weights": {weights}}}', "split": split}
    return [row("a", a, **about), row("b", b, **about)]


METHODS = [{"method": "task_arithmetic"}, {"method": "task_arithmetic", "search": {"name": "lorahub"}}]
RECIPE = {"modes": {"lora": {}}, "fusion": {"methods": METHODS}}


def test_a_search_that_a_single_weight_beats_is_said():
    given, found = [0.3, 0.3], [0.1, 0.7]
    rows = [
        *searched("validation", "task_arithmetic", given, 0.8, 0.6),
        *searched("validation", "lorahub", found, 0.7, 0.6),
    ]
    oracle = searched("oracle", "task_arithmetic", given, 0.9, 0.9)
    summary = Summary(Run(path=None, scores=[*rows, *oracle], recipe=RECIPE))
    (beaten,) = beaten_searches(summary)
    assert beaten.scores == {"test": (pytest.approx(0.65), pytest.approx(0.7))}
    said = (
        "LoRA with LoraHub is worse than the best single λ (task arithmetic, λ 0.3): 0.650 against 0.700 on test rows."
    )
    assert notes(summary) == [said]
    better = [replace(one, score=one.score + 0.1) if one.method == "lorahub" else one for one in rows]
    assert not beaten_searches(Summary(Run(path=None, scores=better, recipe=RECIPE)))
    validated = [replace(one, split="validation") for one in rows]
    both = beaten_searches(Summary(Run(path=None, scores=[*better, *validated], recipe=RECIPE)))
    assert [list(one.scores) for one in both] == [["validation"]]
    several = [replace(one, coefficients='{"weights": [0.2, 0.3]}') for one in rows]
    assert not beaten_searches(Summary(Run(path=None, scores=several, recipe=RECIPE))), "no single λ"
