"""The heads that peft saves for a task type: read and written as stock peft does, for every class of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
from tangora.adapters.adapter import load
from tangora.adapters.formats.lora.format import FORMAT
from tangora.adapters.in_peft.verification import verify
from tangora.errors import AdapterError
from tangora.fusion.fusion import fuse

IDS = torch.tensor([[1, 5, 7, 3, 9]])
BERT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
DISTIL = {"dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2, "vocab_size": 32}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1}
LLAMA = {**BERT, "num_key_value_heads": 2, "pad_token_id": 0}
CLASSES = {
    "BertForSequenceClassification": (BERT, "SEQ_CLS", ["query"], {"classifier"}),
    "RobertaForSequenceClassification": (BERT, "SEQ_CLS", ["query"], {"classifier.dense", "classifier.out_proj"}),
    "DistilBertForSequenceClassification": (DISTIL, "SEQ_CLS", ["q_lin"], {"pre_classifier", "classifier"}),
    "GPT2ForSequenceClassification": (GPT2, "SEQ_CLS", ["c_attn"], {"score"}),
    "LlamaForSequenceClassification": (LLAMA, "SEQ_CLS", ["q_proj"], {"score"}),
    "BertForTokenClassification": (BERT, "TOKEN_CLS", ["query"], {"classifier"}),
    "LlamaForTokenClassification": (LLAMA, "TOKEN_CLS", ["q_proj"], {"score"}),
    "BertForQuestionAnswering": (BERT, "QUESTION_ANS", ["query"], {"qa_outputs"}),
    "DistilBertForQuestionAnswering": (DISTIL, "QUESTION_ANS", ["q_lin"], {"qa_outputs"}),
}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    config_class = getattr(transformers, name).config_class
    labels = {} if name.endswith("QuestionAnswering") else {"num_labels": 3}
    return getattr(transformers, name)(config_class(**CLASSES[name][0], **labels)).eval()


def adapter_of(name: str, folder: Path, seed: int = 1) -> Path:
    _, task_type, targets, _ = CLASSES[name]
    return zoo.write(folder, seed, model_of(name), target_modules=targets, task_type=task_type)


def answers(folder: Path, model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = zoo.through_peft(folder, model)(IDS)
    return torch.cat([t.flatten() for t in out.to_tuple() if isinstance(t, torch.Tensor)])


@pytest.mark.parametrize("name", CLASSES)
def test_a_head_is_read_and_written_as_by_peft(tmp_path, name):
    source = adapter_of(name, tmp_path / "in")
    fuse([source], weights=1.0).save(tmp_path / "out")
    assert {parameter.rpartition(".")[0] for parameter in load(source).whole} == CLASSES[name][3]
    torch.testing.assert_close(answers(tmp_path / "out", model_of(name)), answers(source, model_of(name)))


@pytest.mark.parametrize("name", CLASSES)
def test_heads_kept_per_task_leave_an_adapter_that_peft_loads(tmp_path, name):
    pair = [adapter_of(name, tmp_path / task, seed) for seed, task in enumerate(["one", "two"])]
    fused = fuse(pair, weights=[1.0, 0.0], heads="keep")
    fused.save(tmp_path / "out")
    fused.verify()
    model = model_of(name)
    loaded = model.load_state_dict(load_file(tmp_path / "out/heads/one.safetensors"), strict=False)
    assert not loaded.unexpected_keys
    torch.testing.assert_close(answers(tmp_path / "out", model), answers(pair[0], model_of(name)))


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertForQuestionAnswering"])
def test_verification_loads_a_head_as_the_task_type_requires(tmp_path, name):
    source = adapter_of(name, tmp_path / "in")
    path = source / "adapter_model.safetensors"
    adapter, head = load(source), tuple(f"base_model.model.{n}" for n in load(source).whole)
    save_file({k: v for k, v in load_file(path).items() if k not in head}, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="stock peft does not load it"):
        verify(adapter, source)


@pytest.mark.parametrize("name", ["lm_head.weight", "q_proj.lora_A.weight", "q_proj.lora_B.weight"])
def test_an_empty_tensor_is_refused_as_empty(tmp_path, name):
    config = transformers.LlamaConfig(**LLAMA)
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    source = zoo.write(tmp_path / "in", 1, transformers.LlamaForCausalLM(config), **settings)
    path = source / "adapter_model.safetensors"
    tensors = load_file(path)
    emptied = {k: torch.zeros(0) if k.endswith(name) else v for k, v in tensors.items()}
    save_file(emptied, path, metadata={"format": "pt"})
    for read in (load, lambda folder: load(folder, lazily=True), lambda folder: FORMAT.survey(folder, None)):
        with pytest.raises(AdapterError, match=r"the tensor is empty.*got \[0\]"):
            read(source)
