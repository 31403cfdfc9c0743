"""DoRA trained: what stock peft computes from the files, the base that it is read with, and its fusion."""

from __future__ import annotations

import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import tangora
from tangora.errors import AdapterError, ModelError

ROUNDING = 1e-5  # float32: norms of rows of 32 entries, in another order


def settings(targets="all-linear", **lora):
    training = {"steps": 4, "batch_size": 8, "learning_rate": 0.02}
    return tangora.FinetuneConfig(train="dora", lora={"r": 2, "target_modules": targets, **lora}, training=training)


@pytest.fixture(scope="module")
def encoder(tiny_bert, tmp_path_factory):
    return shutil.copytree(tiny_bert, tmp_path_factory.mktemp("dora") / "encoder")


@pytest.fixture(scope="module")
def base(encoder):
    return tangora.load_base(encoder, family="text-zero-shot", max_length=16)


@pytest.fixture(scope="module")
def tasks(base, text_data):
    files = {split: str(text_data / f"{split}.parquet") for split in ("train", "test")}
    labels = ["red", "green", "blue"]
    return [tangora.load_task(name, base, files, labels=labels, templates=[f"{name} {{}}"]) for name in ("a", "good")]


@pytest.fixture(scope="module")
def experts(base, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    return {t.name: (tangora.finetune(base, t, settings(), out=folder / t.name), folder / t.name) for t in tasks}


def gpt2(folder):
    """Its layers are `Conv1D`, which store the transpose."""
    import tiny

    tokenizer = tiny.decoder_tokenizer()
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1, **shape)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def merged(auto, model, folder):
    base = auto.from_pretrained(model, dtype=torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    after = peft.PeftModel.from_pretrained(base, str(folder)).merge_and_unload().state_dict()
    return {name: after[name] - before[name] for name in before}


def check_against_peft(folder, changed):
    adapter = tangora.load(folder)
    assert adapter.updates
    for site, update in adapter.updates.items():
        theirs = changed[f"{site}.weight"]
        ours = update.dense()
        assert bool(theirs.any())
        torch.testing.assert_close(ours.T if update.turned else ours, theirs, rtol=0, atol=ROUNDING)
    sites = {f"{site}.weight" for site in adapter.updates}
    assert all(not bool(value.any()) for name, value in changed.items() if name not in sites)


def test_the_files_are_those_of_peft(encoder, experts):
    for made, folder in experts.values():
        check_against_peft(folder, merged(AutoModel, encoder, folder))
        assert tangora.load(folder).fingerprint == made.fingerprint
        assert "A DoRA adapter of" in (folder / "README.md").read_text()
        norms = load_file(folder / "adapter_model.safetensors")
        moved = {name for name, value in norms.items() if name.endswith("lora_magnitude_vector") and value.std() > 0}
        assert len(moved) == len(made.updates)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_decoders_too(kind, tiny_llama, sum_data, tmp_path):
    model = tiny_llama if kind == "llama" else gpt2(tmp_path / "gpt2")
    decoder = tangora.load_base(model, family="causal-lm", max_length=64)
    files = {split: str(sum_data / f"{split}.jsonl") for split in ("train", "test")}
    task = tangora.load_task("sums", decoder, files, limit={"validation": 2}, max_new_tokens=4)
    made = tangora.finetune(decoder, task, settings(), out=tmp_path / "expert")
    check_against_peft(tmp_path / "expert", merged(AutoModelForCausalLM, model, tmp_path / "expert"))
    if kind == "gpt2":
        assert any(update.turned for update in made.updates.values())


def test_scores_are_those_of_the_files(base, tasks, experts):
    for task in tasks:
        made, folder = experts[task.name]
        scores = [tangora.evaluate(one, base, [task])[task.name] for one in (made, tangora.load(folder), None)]
        assert scores[0].score == scores[1].score
        assert scores[0].loss == scores[1].loss != scores[2].loss


def test_a_fusion_adds_the_changes(experts, tmp_path):
    folders = [folder for _, folder in experts.values()]
    tangora.fuse(folders, "task_arithmetic", weights=0.5, rank=None).save(tmp_path / "fused")
    fused = tangora.load(tmp_path / "fused")  # a plain LoRA, which needs no base
    loaded = [tangora.load(folder) for folder in folders]
    for site, update in fused.updates.items():
        wanted = sum(0.5 * one.updates[site].dense() for one in loaded)
        torch.testing.assert_close(update.dense(), wanted, rtol=0, atol=1e-5)


def test_its_base_is_looked_for_where_it_was(encoder, experts, tmp_path):
    _, folder = experts["a"]
    elsewhere = encoder.rename(encoder.with_name("moved"))
    try:
        with pytest.raises(AdapterError, match=r"(?s)DoRA.*--base"):
            tangora.load(folder)
        answers = tangora.predictor(folder, base=elsewhere)(["a red photo"])
        base = tangora.load_base(elsewhere, family="text-zero-shot", max_length=16)
        assert tangora.predictor(folder, base=base)(["a red photo"]).answers == answers.answers
        assert tangora.load(folder, elsewhere).fingerprint == experts["a"][0].fingerprint
    finally:
        elsewhere.rename(encoder)
    other = shutil.copytree(encoder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    weights[name][0, 0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(AdapterError, match=r"(?s)other weights than those with which.*other"):
        tangora.load(folder, other)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"init": False}, r"begins at the base.*lora\.init"),
        ({"targets": ["query", "word_embeddings"]}, r"linear layers only.*word_embeddings"),
    ],
)
def test_what_it_cannot_train_is_refused(base, tasks, change, match, tmp_path):
    with pytest.raises(ModelError, match=f"(?s){match}"):
        tangora.finetune(base, tasks[0], settings(**change), out=tmp_path / "expert")
    assert not (tmp_path / "expert").exists()


def test_rounded_weights_are_refused(encoder, text_data, tmp_path):
    half = tangora.load_base(encoder, family="text-zero-shot", max_length=16, weights_dtype="bfloat16")
    files = {split: str(text_data / f"{split}.parquet") for split in ("train", "test")}
    task = tangora.load_task("a", half, files, labels=["red", "green", "blue"])
    with pytest.raises(ModelError, match=r"base\.weights_dtype"):
        tangora.finetune(half, task, settings(), out=tmp_path / "expert")
