"""The code of a model card runs, and loads the model whose adapter it describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import zoo
from tangora.checkpoints.merge import fuse_checkpoints
from tangora.fusion.fusion import fuse
from tangora.modes.loading import load_model

IDS = torch.tensor([[1, 5, 7, 3, 9]])
BERT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
LLAMA = {**BERT, "num_key_value_heads": 2, "pad_token_id": 0}
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
VIT = {**BERT, "image_size": 8, "patch_size": 4}
del VIT["vocab_size"]
LABELS = {"num_labels": 3}
# name -> class of the base, class of the adapted model, configuration, settings of the adapter
KINDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "causal": ("LlamaForCausalLM", "LlamaForCausalLM", LLAMA, {"task_type": "CAUSAL_LM"}),
    "causal, no task type": ("LlamaForCausalLM", "LlamaForCausalLM", LLAMA, {}),
    "sequence to sequence": ("T5ForConditionalGeneration",) * 2 + (T5, {"task_type": "SEQ_2_SEQ_LM"}),
    "features": ("BertModel", "BertModel", BERT, {"task_type": "FEATURE_EXTRACTION"}),
    "masked, no task type": ("BertForMaskedLM", "BertForMaskedLM", BERT, {}),
    "classifier": ("BertForPreTraining", "BertForSequenceClassification", BERT, {"task_type": "SEQ_CLS"}),
    "decoder's classifier": ("LlamaForCausalLM", "LlamaForSequenceClassification", LLAMA, {"task_type": "SEQ_CLS"}),
    "classifier, no task type": (
        *("BertForPreTraining", "BertForSequenceClassification", BERT),
        {"modules_to_save": ["classifier"]},
    ),
    "tokens": ("BertForMaskedLM", "BertForTokenClassification", BERT, {"task_type": "TOKEN_CLS"}),
    "answers": ("BertForPreTraining", "BertForQuestionAnswering", BERT, {"task_type": "QUESTION_ANS"}),
    "images": ("ViTModel", "ViTForImageClassification", VIT, {"modules_to_save": ["classifier"]}),
}
HEADED = [name for name, (_, adapted, _, _) in KINDS.items() if "Classification" in adapted or "Answering" in adapted]


@pytest.fixture
def made(tmp_path):
    """Write a base; return a function that writes an adapter of it by stock peft, and returns the adapted model."""

    def make(name: str, folder: Path, seed: int) -> Any:
        base, adapted, settings, options = KINDS[name]
        if not (tmp_path / "base").exists():
            torch.manual_seed(0)
            model = getattr(transformers, base)
            model(model.config_class(**settings)).save_pretrained(tmp_path / "base")
        torch.manual_seed(0)
        labels = LABELS if "Classification" in adapted else {}
        model = getattr(transformers, adapted).from_pretrained(tmp_path / "base", **labels)
        targets = ["q"] if "T5" in adapted else ["q_proj"] if "Llama" in adapted else ["query"]
        if adapted.startswith("ViT"):
            targets = [name for name, _ in model.named_modules() if name.endswith(("query", "q_proj"))]
        zoo.write(folder, seed, model, target_modules=targets, **options)
        return model.eval()

    return make


def run(folder: Path) -> Any:
    """Run the code of a folder's card; return its model."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace("path/to/this/folder", str(folder)), names)
    return names["model"].eval()


def answers(model: Any) -> torch.Tensor:
    config = model.config
    with torch.no_grad():
        if hasattr(config, "image_size"):
            return model(torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8))[0]
        if config.is_encoder_decoder:
            return model(input_ids=IDS, decoder_input_ids=IDS)[0]
        return torch.cat([t.flatten() for t in model(IDS).to_tuple()[:2] if isinstance(t, torch.Tensor)])


@pytest.mark.parametrize("name", KINDS)
def test_the_code_of_an_adapters_card_loads_it(name, made, tmp_path):
    wrapped = made(name, tmp_path / "a", 1)
    fuse([tmp_path / "a"], weights=1.0).save(tmp_path / "out")
    torch.testing.assert_close(answers(run(tmp_path / "out")), answers(wrapped))


@pytest.mark.parametrize("name", HEADED)
def test_the_code_loads_one_of_the_heads_that_are_kept(name, made, tmp_path):
    first, _ = (made(name, tmp_path / task, seed) for seed, task in enumerate(["one", "two"]))
    fuse([tmp_path / "one", tmp_path / "two"], weights=[1.0, 0.0], heads="keep").save(tmp_path / "out")
    torch.testing.assert_close(answers(run(tmp_path / "out")), answers(first))


@pytest.mark.parametrize("name", ["causal", "sequence to sequence", "features", "masked, no task type"])
def test_the_code_of_a_checkpoints_card_loads_its_class(name, made, tmp_path):
    wrapped = made(name, tmp_path / "a", 1)
    fuse_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", weights=1.0)
    model = run(tmp_path / "out")
    assert type(model) is type(wrapped)
    torch.testing.assert_close(answers(model), answers(wrapped), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_load_model_builds_the_head_that_the_adapter_saved(name, made, tmp_path):
    wrapped = made(name, tmp_path / "a", 1)
    model = load_model(tmp_path / "a")
    assert isinstance(model, peft.PeftModel)
    torch.testing.assert_close(answers(model), answers(wrapped))


def test_a_base_of_other_labels_gets_the_adapters_head(made, tmp_path):
    wrapped = made("classifier", tmp_path / "a", 1)
    other = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5)
    other.save_pretrained(tmp_path / "labelled")
    torch.testing.assert_close(answers(load_model(tmp_path / "a", tmp_path / "labelled")), answers(wrapped))
    assert load_file(tmp_path / "labelled/model.safetensors")["classifier.weight"].shape[0] == 5
