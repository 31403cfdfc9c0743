"""The harness's numbers on our model equal those of its own `hf` model with the adapter merged."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tangora
from tangora.errors import ArgumentError, ModelError

pytest.importorskip("lm_eval")
from tangora.evaluation.harness import harness_scores

CHOICE = """
task: sums_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXT = """
task: sums_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
generation_kwargs: {{until: ["{stop}"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: sums_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}]
"""
TASKS = ("sums_choice", "sums_text", "sums_perplexity")


@pytest.fixture(scope="module")
def tasks(sum_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    for name, text in zip(TASKS, (CHOICE, TEXT, ROLLING), strict=True):
        (folder / f"{name}.yaml").write_text(text.format(data=sum_data / "test.jsonl", stop="e"))
    return folder


@pytest.fixture(scope="module")
def base(tiny_llama):
    return tangora.load_base(tiny_llama, family="causal-lm", max_length=64)


@pytest.fixture(scope="module")
def expert(base, sum_data, tmp_path_factory):
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    task = tangora.load_task("sums", base, files, limit={"validation": 2}, max_new_tokens=4)
    training = {"steps": 12, "batch_size": 8, "learning_rate": 0.02}
    config = tangora.FinetuneConfig(lora={"r": 4, "target_modules": "all-linear"}, training=training)
    folder = tmp_path_factory.mktemp("expert") / "sums"
    tangora.finetune(base, task, config, out=folder)
    return folder


def of_the_harness(folder, tiny_llama, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    if folder is not None:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    named = {"tokenizer": AutoTokenizer.from_pretrained(tiny_llama), "batch_size": 4, "device": "cpu"}
    found = simple_evaluate(
        model=HFLM(pretrained=model.eval(), **named),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks)),
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    return found["results"]


def test_scores_are_those_of_the_harnesss_own_model(base, expert, tiny_llama, tasks):
    candidates = {"base": lambda: None, "expert": lambda: tangora.load(expert)}
    found = harness_scores(candidates, base, TASKS, include=tasks, batch_size=5)
    for name, folder in (("base", None), ("expert", expert)):
        theirs = of_the_harness(folder, tiny_llama, tasks)
        for task, scores in found[name].items():
            assert scores
            for metric, score in scores.items():
                assert score == pytest.approx(theirs[task][f"{metric},none"], rel=1e-4), (name, task, metric)
    assert found["base"] != found["expert"]


def test_an_expanded_model_is_scored_too(base, sum_data, tasks):
    """At zero, the expansion is the base."""
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    task = tangora.load_task("sums", base, files, limit={"validation": 2}, max_new_tokens=4)
    config = tangora.FinetuneConfig(
        train="tangent", lora={"r": 2, "target_modules": ["q_proj"]}, training={"steps": 2, "learning_rate": 1e-9}
    )
    adapter = tangora.finetune(base, task, config)
    found = harness_scores({"base": lambda: None, "tangent": lambda: adapter}, base, TASKS[1:], include=tasks, limit=4)
    for task_name, scores in found["base"].items():
        assert found["tangent"][task_name] == pytest.approx(scores, rel=1e-4)


def test_unknown_tasks_and_other_families_are_refused(base, text_base, tasks):
    with pytest.raises(ArgumentError, match=r"no such task.*sums_choise"):
        harness_scores({"base": lambda: None}, base, ["sums_choise"], include=tasks)
    with pytest.raises(ModelError, match="scores decoders"):
        harness_scores({"base": lambda: None}, text_base, ["sums_choice"], include=tasks)


def test_the_command_line_prints_a_table(base, expert, tiny_llama, sum_data, tasks, tmp_path):
    import yaml
    from typer.testing import CliRunner

    from tangora.cli import app

    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    recipe = {
        "name": "sums",
        "base": {"family": "causal-lm", "model": str(tiny_llama), "max_length": 64},
        "tasks": [{"name": "sums", "source": {"jsonl": files}}],
        "modes": {"lora": {}},
        "fusion": {"methods": [{"method": "average"}]},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--lm-eval", "sums_choice,sums_text", "--lm-eval-path", str(tasks), "--lm-eval-limit", "3", "--json"]
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "r.yaml"), str(expert), *options])
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)["scores"]
    assert set(scores) == {"zero-shot", str(expert)}
    assert set(scores["zero-shot"]) == {"sums_choice", "sums_text"}
    assert set(scores["zero-shot"]["sums_choice"]) == {"acc", "acc_norm"}
