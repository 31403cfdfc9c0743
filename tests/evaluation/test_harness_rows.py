"""A task of the harness as a task of a recipe: its rows, its scores, and what is refused."""

from __future__ import annotations

import pytest

import tangora
from tangora.errors import DataError, RecipeError

pytest.importorskip("lm_eval")
from tangora.evaluation.harness import harness_scores

DATA = """
dataset_path: json
dataset_kwargs: {{data_files: {{train: {data}/train.jsonl, test: {data}/test.jsonl}}}}
training_split: train
test_split: test
doc_to_text: "{{{{prompt}}}}"
"""
CHOICE = """
task: sums_choice
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXT = """
task: {name}
output_type: generate_until
doc_to_target: "{{{{completion}}}}"
generation_kwargs: {{until: ["{stop}"], max_gen_toks: 8, do_sample: {sample}}}
metric_list: [{{metric: exact_match}}]
"""
FILTER = """
filter_list: [{name: last, filter: [{function: regex, regex_pattern: "x"}, {function: take_first}]}]
"""
UNTRAINED = CHOICE.replace("sums_choice", "untrained") + "training_split: null\n"


@pytest.fixture(scope="module")
def folder(sum_data, tmp_path_factory):
    made = tmp_path_factory.mktemp("harness")
    data = DATA.format(data=sum_data)
    generated = {name: TEXT.format(name=name, stop="e", sample="false") for name in ("sums_text", "filtered")}
    generated["sampled"] = TEXT.format(name="sampled", stop="e", sample="true")
    texts = {"sums_choice": CHOICE.format(), "untrained": UNTRAINED.format(), **generated}
    for name, text in texts.items():
        shared = "\n".join(line for line in data.splitlines() if name != "untrained" or "training_split" not in line)
        (made / f"{name}.yaml").write_text(shared + text + (FILTER if name == "filtered" else ""))
    return made


@pytest.fixture(scope="module")
def base(tiny_llama):
    return tangora.load_base(tiny_llama, family="causal-lm", max_length=64)


def loaded(base, folder, name, **settings):
    shots = settings.pop("shots", None)
    return tangora.load_task(name, base, {"lm_eval": name, "include": str(folder), "shots": shots}, **settings)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize(("normalize", "metric"), [("none", "acc"), ("characters", "acc_norm")])
def test_choices_score_as_in_the_harness(base, folder, normalize, metric, shots):
    task = loaded(base, folder, "sums_choice", choices="choices", normalize=normalize, shots=shots)
    theirs = harness_scores({"base": lambda: None}, base, ["sums_choice"], include=folder, shots=shots)
    ours = tangora.evaluate(None, base, [task])["sums_choice"].score
    assert ours == pytest.approx(theirs["base"]["sums_choice"][metric], abs=1e-9)


def test_no_row_of_train_is_an_example_of_itself(base, folder):
    from tangora.config.tasks import Source
    from tangora.tasks.harness_rows import read_harness

    tables = read_harness(Source(lm_eval="sums_text", include=str(folder), shots=12), "sums")
    plain = read_harness(Source(lm_eval="sums_text", include=str(folder), shots=0), "sums")
    asked = plain["train"].column("prompt")
    once = [own for own in asked if asked.count(own) == 1]
    assert len(once) > 5
    for own, prompt in zip(asked, tables["train"].column("prompt"), strict=True):
        assert prompt.endswith(own)
        assert own not in once or own not in prompt.removesuffix(own), "its answer would follow"


def test_generated_answers_score_as_in_the_harness_and_can_be_learned(base, folder):
    task = loaded(base, folder, "sums_text", stop=["e"], max_new_tokens=8)
    assert set(task.splits) == {"train", "validation", "test"}
    training = {"steps": 12, "batch_size": 8, "learning_rate": 0.02}
    lora = {"r": 4, "target_modules": "all-linear"}
    adapter = tangora.finetune(base, task, tangora.FinetuneConfig(lora=lora, training=training))
    candidates = {"base": lambda: None, "expert": lambda: adapter}
    theirs = harness_scores(candidates, base, ["sums_text"], include=folder)
    for name, one in (("base", None), ("expert", adapter)):
        ours = tangora.evaluate(one, base, [task])["sums_text"].score
        assert ours == pytest.approx(theirs[name]["sums_text"]["exact_match"], abs=1e-9)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("sums_choise", {}, r"no such task.*sums_choise.*sums_choice"),
        ("sums_choice", {}, r"another setting.*form: 'prompt'.*choices: choices"),
        ("sums_text", {"max_new_tokens": 8}, r"another setting.*stop: \[\].*stop: \['e'\]"),
        ("sums_text", {"stop": ["e"]}, r"max_new_tokens: None.*max_new_tokens: 8"),
        ("sums_choice", {"choices": "choices", "separator": ""}, r"separator: ''.*separator: ' '"),
        ("sums_choice", {"choices": "choices", "prompt": "Q: {prompt}"}, r"prompt: 'Q: .*prompt: '{prompt}'"),
        ("sums_choice", {"choices": "choices", "chat": True}, r"chat: True.*chat: False"),
        ("untrained", {"choices": "choices"}, r"no rows to train on.*tangora evaluate --lm-eval untrained"),
        ("filtered", {"stop": ["e"], "max_new_tokens": 8}, r"changes answers.*regex"),
        ("sampled", {"stop": ["e"], "max_new_tokens": 8}, r"samples"),
    ],
)
def test_what_would_score_otherwise_is_refused(base, folder, name, settings, match):
    with pytest.raises(DataError, match=match.replace(".*", r"[\s\S]*")):
        loaded(base, folder, name, **settings)


def test_keys_of_the_harness_need_a_task_of_it(base):
    with pytest.raises(RecipeError, match="include and shots are of lm_eval"):
        tangora.load_task("sums", base, {"hub": "sums", "shots": 2})
