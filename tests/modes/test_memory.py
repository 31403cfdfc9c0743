"""Estimates of memory against the arithmetic of their parts."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import tangora
from tangora.cli import app
from tangora.modes.memory import Memory, memory_of, weight_bytes
from tangora.tasks import load_base
from tangora.tasks.language.logits import CHUNK

# tiny_llama: 2 layers of width 32, inner 48, 4 heads of 8, 2 of keys and values, tied embeddings
ATTENTION = 32 * 32 * 2 + 32 * 16 * 2
BLOCK = ATTENTION + 3 * 32 * 48
NORMS = 5 * 32


@pytest.fixture(scope="module")
def case(families):
    return families["language"]


def matrices(base) -> int:
    return 2 * BLOCK + base.backbone.config.vocab_size * 32


def frequencies(base) -> int:
    """Numbers of the tables of rotary positions."""
    return sum(buffer.numel() for buffer in base.backbone.buffers())


def estimate(case, mode="lora", base=None, batch_size=5, **training) -> Memory:
    config = case.config(mode)
    config = config.model_copy(update={"training": config.training.model_copy(update=training)})
    return memory_of(base or case.base, case.task, config, batch_size)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_bytes_of_weights_are_exact(case, dtype, size):
    base = load_base(case.base.config.model_copy(update={"weights_dtype": dtype}))
    assert weight_bytes(base) == size * matrices(base) + 4 * (NORMS + frequencies(base))


def test_what_is_trained_counts_four_times(case):
    training = estimate(case).training
    numbers = 2 * 2 * (32 + 32 + 32 + 16)  # 2 layers, rank 2, q_proj and v_proj
    assert (training["adapter"], training["gradients"], training["optimizer"]) == (
        4 * numbers,
        4 * numbers,
        8 * numbers,
    )
    whole = estimate(case, "full").training
    trained = matrices(case.base) + NORMS
    assert (whole["adapter"], whole["gradients"], whole["optimizer"]) == (0, 4 * trained, 8 * trained)


def tokens(case, rows: int, split: str = "train") -> int:
    """Rows of a batch times its columns: the longest prompt and the longest completion of its rows."""
    inputs = case.task.splits[split].inputs
    pairs = sorted(zip(map(len, inputs["input_ids"]), map(len, inputs["labels"]), strict=True), key=sum)[-rows:]
    return rows * (max(p for p, _ in pairs) + max(t for _, t in pairs))


def test_activations_are_rows_times_length_times_width(case):
    kept = 4 * (6 * 32 + 3 * 48) + 4 * 2 * 32  # bytes of a block and token
    found = estimate(case, batch_size=8).training
    assert found["activations"] == 2 * tokens(case, 8) * kept
    again = estimate(case, gradient_checkpointing=True).training
    assert again["activations"] == tokens(case, 8) * (2 * 4 * 32 + kept)
    half = estimate(case, bf16=True).training
    assert half["activations"] == 2 * tokens(case, 8) * (kept - 2 * (6 * 32 + 3 * 48))
    assert half["casts"] == 2 * matrices(case.base)  # kept for the backward pass
    assert estimate(case, "tangent").training["activations"] == 2 * found["activations"]
    assert estimate(case, batch_size=5).scoring["activations"] == tokens(case, 5, "test") * kept


def test_logits_of_decoders_come_in_chunks(case, monkeypatch):
    vocabulary = case.base.backbone.config.vocab_size
    targets = sorted(
        zip(*(map(len, case.task.splits["train"].inputs[n]) for n in ("input_ids", "labels")), strict=True), key=sum
    )
    columns = max(t for _, t in targets[-8:])
    assert estimate(case).training["logits"] == 3 * 4 * 8 * columns * vocabulary < 3 * 4 * CHUNK
    monkeypatch.setattr("tangora.modes.memory.CHUNK", 2 * vocabulary)
    assert estimate(case).training["logits"] == 3 * 4 * 2 * vocabulary


def test_scoring_keeps_factors_beside_held_weights_and_copies_of_others(case):
    changed = 2 * (32 * 32 + 32 * 16)
    assert estimate(case).scoring["adapter"] == 4 * changed
    base = load_base(case.base.config.model_copy(update={"weights_dtype": "bfloat16"}))
    held = estimate(case, base=base)
    assert held.scoring["adapter"] == held.training["adapter"] < 4 * changed
    assert held.training["one weight in float32"] == 4 * max(32 * 48, base.backbone.config.vocab_size * 32)
    assert held.training["casts"] == 0
    assert held.total["training"] == sum(held.training.values()) < estimate(case).total["training"]


def test_unknown_architectures_say_so(tiny_resnet, image_data):
    base = tangora.load_base(tiny_resnet, family="image-classification")
    files = {split: image_data / f"{split}.npz" for split in ("train", "test")}
    task = tangora.load_task("c", base, files, image="images", label="labels", labels=["red", "green", "blue"])
    config = tangora.FinetuneConfig(train="full", training={"batch_size": 2})
    memory = memory_of(base, task, config, 4)
    assert "activations" not in memory.training
    assert "activations unknown" in str(memory)


def test_a_dry_run_of_one_adapter_says_the_memory_and_writes_nothing(workshop, tmp_path, monkeypatch):
    monkeypatch.chdir(workshop)
    arguments = ["finetune", "recipe.yaml", "--task", "one", "--out", str(tmp_path / "out"), "--dry-run"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "memory, estimated: training" in done.stdout.replace("\n", " ")
    printed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert printed["dry_run"] is True
    memory = printed["memory"]
    assert memory["training"]["adapter"] == 4 * printed["trainable"]
    assert memory["training"]["weights"] == memory["scoring"]["weights"] > 0
    assert not (tmp_path / "out").exists()
    planned = json.loads(
        CliRunner().invoke(app, ["run", "recipe.yaml", "--out", str(tmp_path / "run"), "--dry-run", "--json"]).stdout
    )
    assert {mode["mode"]: mode["memory"] for mode in planned["modes"]}["lora"] == memory
