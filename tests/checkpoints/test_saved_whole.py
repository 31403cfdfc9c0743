"""What adapters save whole, onto their base: heads that it lacks, and parameters of its own, weighted as changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import zoo
from tangora.checkpoints.merge import fuse_checkpoints
from tangora.errors import FusionError
from tangora.fusion.fusion import fuse

IDS = torch.tensor([[1, 5, 7, 3, 9]])
BERT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
DISTIL = {"dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2, "vocab_size": 32}
LLAMA = {**BERT, "num_key_value_heads": 2, "pad_token_id": 0}
# class of the base, class of the adapted model, configuration, targets, task type
KINDS = [
    ("BertForPreTraining", "BertForSequenceClassification", BERT, "query", "SEQ_CLS"),
    ("BertModel", "BertForSequenceClassification", BERT, "query", "SEQ_CLS"),
    ("BertForPreTraining", "BertForSequenceClassification", BERT, "query", None),
    ("DistilBertForMaskedLM", "DistilBertForSequenceClassification", DISTIL, "q_lin", "SEQ_CLS"),
    ("RobertaForMaskedLM", "RobertaForSequenceClassification", BERT, "query", "SEQ_CLS"),
    ("LlamaForCausalLM", "LlamaForSequenceClassification", LLAMA, "q_proj", "SEQ_CLS"),
    ("BertForMaskedLM", "BertForTokenClassification", BERT, "query", "TOKEN_CLS"),
    ("BertForMaskedLM", "BertForQuestionAnswering", BERT, "query", "QUESTION_ANS"),
]


def adapted(folder: Path, kind: tuple[Any, ...], seed: int, name: str) -> Any:
    """Write a base, unless it is there, and an adapter of it; return the adapted model."""
    base, model, settings, target, task_type = kind
    if not (folder / "base").exists():
        torch.manual_seed(0)
        of_base = getattr(transformers, base)
        of_base(of_base.config_class(**settings)).save_pretrained(folder / "base")
    torch.manual_seed(0)
    labels = {} if "Answering" in model else {"num_labels": 3}
    loaded = getattr(transformers, model).from_pretrained(folder / "base", **labels)
    head = {} if task_type else {"modules_to_save": ["classifier"]}
    zoo.write(folder / name, seed, loaded, target_modules=[target], task_type=task_type, **head)
    return loaded.eval()


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([t.flatten() for t in model(IDS).to_tuple()[:2] if isinstance(t, torch.Tensor)])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}-{kind[4]}")
def test_a_head_that_the_base_lacks_is_written_into_the_model(tmp_path, kind):
    wrapped = adapted(tmp_path, kind, 1, "a")
    merged = fuse_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", weights=1.0)
    assert any("the base has no head" in note for note in merged.notes)
    loaded, info = getattr(transformers, kind[1]).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.config.num_labels == wrapped.config.num_labels
    torch.testing.assert_close(answers(loaded), answers(wrapped), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[:4], ids=lambda kind: f"{kind[0]}-{kind[1]}-{kind[4]}")
def test_a_kept_head_is_beside_the_model(tmp_path, kind):
    wrapped = adapted(tmp_path, kind, 1, "a")
    fuse_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", weights=1.0, heads="keep")
    assert load_file(tmp_path / "out/model.safetensors").keys() == load_file(tmp_path / "base/model.safetensors").keys()
    loaded = getattr(transformers, kind[1]).from_pretrained(tmp_path / "out", num_labels=3).eval()
    assert not loaded.load_state_dict(load_file(tmp_path / "out/heads/a.safetensors"), strict=False).unexpected_keys
    torch.testing.assert_close(answers(loaded), answers(wrapped), rtol=1e-5, atol=1e-5)


def test_the_mean_of_heads_is_written_too(tmp_path):
    for seed in (1, 2):
        adapted(tmp_path, KINDS[0], seed, f"a{seed}")
    pair = [tmp_path / "a1", tmp_path / "a2"]
    with pytest.raises(FusionError, match="--heads keep"):
        fuse_checkpoints(tmp_path / "base", pair, tmp_path / "none")
    fuse_checkpoints(tmp_path / "base", pair, tmp_path / "out", weights=[0.2, 0.6], heads="fuse")
    one, two = (load_file(f / "adapter_model.safetensors")["base_model.model.classifier.weight"] for f in pair)
    found = load_file(tmp_path / "out/model.safetensors")["classifier.weight"]
    torch.testing.assert_close(found, 0.25 * one + 0.75 * two)


def whole_pair(tmp_path: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]], list[Path]]:
    """A base, and two adapters that saved embedding, head and norm; the base's tensors and the adapters' own."""
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "base")
    folders, own = [], []
    for seed in (1, 2):
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        saved = {"modules_to_save": ["embed_tokens", "lm_head", "model.norm"]}
        folders.append(zoo.write(tmp_path / f"a{seed}", seed, model, target_modules=["q_proj"], **saved))
        file = load_file(folders[-1] / "adapter_model.safetensors")
        own.append({k.removeprefix("base_model.model."): v for k, v in file.items() if "lora" not in k})
    return load_file(tmp_path / "base/model.safetensors"), own, folders


@pytest.mark.parametrize("space", ["delta", "core"])
@pytest.mark.parametrize("weights", [[0.0], [1.0], [-0.5], [0.0, 0.0], [0.5, 0.25]])
def test_parameters_of_the_base_are_weighted_as_changes(tmp_path, weights, space):
    base, own, folders = whole_pair(tmp_path)
    count = len(weights)
    fuse_checkpoints(tmp_path / "base", folders[:count], tmp_path / "out", weights=weights, space=space)
    found = load_file(tmp_path / "out/model.safetensors")
    assert own[0].keys() == {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    for name in own[0]:
        change = sum(w * (a[name].double() - base[name]) for w, a in zip(weights, own, strict=False))
        # one rounding of the sum and one of the change, in float32, of numbers under 4
        torch.testing.assert_close(found[name].double(), base[name] + change, rtol=0, atol=1e-6)
    if not any(weights):
        assert all(torch.equal(found[name], value) for name, value in base.items())


@pytest.mark.parametrize("method", ["ties_per_tensor", "dare"])
def test_other_methods_fuse_the_changes_too(tmp_path, method):
    base, own, folders = whole_pair(tmp_path)
    for weight in (0.0, 1.0):
        out = tmp_path / f"out{weight}"
        fuse_checkpoints(tmp_path / "base", folders, out, method, weights=weight)
        found = load_file(out / "model.safetensors")
        changed = [name for name in own[0] if not torch.equal(found[name], base[name])]
        assert changed == ([] if weight == 0.0 else list(own[0]))


def test_an_adapter_fused_with_its_base_has_the_weighted_parameters(tmp_path):
    base, own, folders = whole_pair(tmp_path)
    fused = fuse(folders[:1], weights=0.25, base=tmp_path / "base")
    for name, value in fused.whole.items():
        torch.testing.assert_close(value, base[name] + 0.25 * (own[0][name] - base[name]))
    kept = fuse(folders[:1], weights=0.25)  # without the base there is no change to weight
    assert all(torch.equal(kept.whole[name], value) for name, value in own[0].items())
    with pytest.raises(FusionError, match="differ"):
        fuse(folders)


def grown_pair(tmp_path: Path, tied: bool) -> list[Path]:
    """A base of 32 rows, and two adapters of it with the same two new tokens."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "base")
    return [grown_adapter(tmp_path, seed) for seed in (1, 2)]


def grown_adapter(tmp_path: Path, seed: int, new: int = 1, **settings: Any) -> Path:
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(new)
    model.resize_token_embeddings(34, mean_resizing=False)
    return zoo.write(tmp_path / f"a{seed}", seed, model, **{"target_modules": ["q_proj"], **settings})


@pytest.mark.parametrize("tied", [False, True])
def test_the_rows_of_new_tokens_are_added(tmp_path, tied):
    pair = grown_pair(tmp_path, tied)
    for weights in ([1.0, 0.0], [0.0, 0.0]):
        out = tmp_path / f"out{weights[0]}"
        merged = fuse_checkpoints(tmp_path / "base", pair, out, weights=weights)
        assert any("34 rows" in note and "lacks their tokens" in note for note in merged.notes)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
        assert loaded.config.vocab_size == 34
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(34, mean_resizing=False)
        wanted = zoo.through_peft(pair[0], model).float()
        ids = torch.tensor([[1, 32, 5, 33]])
        with torch.no_grad():
            if weights[0] == 1.0:
                torch.testing.assert_close(loaded(ids).logits, wanted(ids).logits, rtol=1e-4, atol=1e-5)
            else:  # the base, and the new rows
                with wanted.disable_adapter():
                    torch.testing.assert_close(loaded(ids).logits, wanted(ids).logits, rtol=1e-4, atol=1e-5)


def test_new_rows_of_modules_to_save(tmp_path):
    grown_pair(tmp_path, tied=False)
    source = grown_adapter(tmp_path, 3, modules_to_save=["embed_tokens", "lm_head"])
    fuse_checkpoints(tmp_path / "base", [source], tmp_path / "out", weights=0.5)
    own = load_file(source / "adapter_model.safetensors")
    base, found = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        new = own[f"base_model.model.{name}"]
        torch.testing.assert_close(found[name][:32], (base[name] + new[:32]) / 2)
        assert torch.equal(found[name][32:], new[32:])


def test_rows_that_cannot_be_added_are_refused(tmp_path):
    pair = grown_pair(tmp_path, tied=False)
    other = grown_adapter(tmp_path, 3, new=2)
    with pytest.raises(FusionError, match="rows of tokens beyond the base's 32 differ"):
        fuse_checkpoints(tmp_path / "base", [pair[0], other], tmp_path / "out")
    adapted = grown_adapter(tmp_path, 4, target_modules=["q_proj", "embed_tokens", "lm_head"])
    with pytest.raises(FusionError, match=r"34 rows of tokens, the base has 32"):
        fuse_checkpoints(tmp_path / "base", [adapted], tmp_path / "out")
    assert not (tmp_path / "out").exists()
