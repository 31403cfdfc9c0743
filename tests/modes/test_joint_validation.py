"""Validation of a training of several tasks: by the mean score, or by the loss if scores have no common scale."""

from __future__ import annotations

import pytest

import tangora
from tangora.modes.contract import Bench
from tangora.modes.low_rank import train_lora

TRAINING = {"steps": 6, "batch_size": 2, "learning_rate": 0.02, "evaluate_every": 1, "early_stopping": 6}


@pytest.fixture(scope="module")
def validations(tiny_llama, sum_data):
    base = tangora.load_base(tiny_llama, family="causal-lm", max_length=64)
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    forms = {"sums": {"metric": "edit_similarity"}, "texts": {"text": "text"}, "other": {"metric": "exact_match"}}
    settings = {"limit": {"validation": 2}, "max_new_tokens": 4}
    tasks = {name: tangora.load_task(name, base, files, **settings, **form) for name, form in forms.items()}
    lora = {"r": 2, "target_modules": ["q_proj"]}

    def trained(*names):
        bench = Bench(base)
        train_lora(bench, [tasks[name] for name in names], tangora.FinetuneConfig(lora=lora, training=TRAINING))
        return bench.records[names[0]]["validation"]

    return trained


def test_a_perplexity_and_a_share_have_no_mean(validations):
    """Else the perplexity, which starts at hundreds, would decide alone."""
    assert all(one["score"] == one["loss"] for one in validations("sums", "texts"))


def test_shares_have_a_mean(validations):
    found = validations("sums", "other")
    assert all(0 <= one["score"] <= 1 for one in found)
    assert any(one["score"] != one["loss"] for one in found)
