"""Configurations that define another function are refused; those that differ in nothing that computes are not."""

from __future__ import annotations

import json

import pytest
from test_fuse_checkpoints import refuse
from transformers import CONFIG_MAPPING

from folders import CONFIG, family, save
from tangora.checkpoints import fuse_checkpoints
from tangora.checkpoints.architecture import differences
from tangora.errors import FusionError

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

# model type, a key that changes the function (a dot leads into a nested configuration), and a value that is no default
FUNCTION = [
    ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 1e6}),
    ("llama", "rope_parameters", {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    ("llama", "rope_theta", 500000.0),
    ("llama", "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("llama", "rope_scaling", {**LLAMA3, "original_max_position_embeddings": 8192}),
    ("llama", "num_attention_heads", 16),
    ("llama", "num_key_value_heads", 8),
    ("llama", "head_dim", 64),
    ("llama", "rms_norm_eps", 1e-5),
    ("llama", "hidden_act", "gelu"),
    ("mistral", "sliding_window", None),
    ("mistral", "sliding_window", 512),
    ("qwen2", "use_sliding_window", True),
    ("qwen2", "layer_types", ["sliding_attention"] * 32),
    ("gemma2", "final_logit_softcapping", 15.0),
    ("gemma2", "attn_logit_softcapping", None),
    ("gemma2", "query_pre_attn_scalar", 128),
    ("gemma2", "hidden_activation", "silu"),
    ("gemma3", "text_config.sliding_window", 99),
    ("gemma3", "text_config.rope_local_base_freq", 20000.0),
    ("gemma3", "vision_config.layer_norm_eps", 1e-3),
    ("gemma3", "image_token_index", 7),
    ("granite", "logits_scaling", 8.0),
    ("granite", "embedding_multiplier", 12.0),
    ("cohere", "logit_scale", 0.25),
    ("mixtral", "num_experts_per_tok", 1),
    ("deepseek_v3", "routed_scaling_factor", 1.0),
    ("deepseek_v3", "n_group", 1),
    ("gpt_neox", "rotary_pct", 0.5),
    ("gpt_neox", "rotary_emb_base", 1e5),
    ("gpt_neox", "use_parallel_residual", False),
    ("phi", "partial_rotary_factor", 1.0),
    ("gpt2", "activation_function", "relu"),
    ("gpt2", "layer_norm_epsilon", 1e-3),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("bert", "hidden_act", "relu"),
    ("bert", "is_decoder", True),
    ("bert", "num_attention_heads", 6),
    ("roberta", "pad_token_id", 0),
    ("esm", "token_dropout", True),
    ("t5", "relative_attention_max_distance", 64),
    ("t5", "feed_forward_proj", "gated-gelu"),
    ("bart", "scale_embedding", True),
    ("whisper", "encoder_attention_heads", 8),
    ("vit", "layer_norm_eps", 1e-3),
    ("swin", "window_size", 14),
    ("clip", "vision_config.hidden_act", "gelu"),
    ("clip", "text_config.eos_token_id", 5),
    ("siglip", "vision_config.num_attention_heads", 4),
    ("llava", "vision_feature_layer", -1),
    ("llava", "text_config.rms_norm_eps", 1e-3),
    ("mine", "rope_theta", 1e6),
    ("mine", "layer_norm_eps", 1e-3),
    ("mine", "encoder.num_attention_heads", 3),
]

# model type, and keys that differ without any effect on what the model computes
NOTHING = [
    (
        "llama",
        {"torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": False, "_name_or_path": "org/x"},
    ),
    ("llama", {"attention_dropout": 0.1, "initializer_range": 0.5, "pretraining_tp": 2}),
    ("llama", {"bos_token_id": 9, "eos_token_id": [9, 10], "pad_token_id": 3, "vocab_size": 77}),
    ("llama", {"max_position_embeddings": 131072, "unsloth_version": "2024.9", "architectures": ["LlamaModel"]}),
    ("llama", {"rope_theta": 10000, "rope_scaling": None}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ("llama", {"head_dim": 128, "num_key_value_heads": 32, "mlp_bias": False, "rms_norm_eps": 1.0000000001e-6}),
    ("llama", {"max_length": 20, "temperature": 0.6, "top_p": 0.9, "do_sample": True}),
    ("qwen2", {"use_sliding_window": False, "max_window_layers": 21, "sliding_window": 131072}),
    ("bert", {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}, "problem_type": "regression"}),
    ("bert", {"classifier_dropout": 0.2, "hidden_dropout_prob": 0.0, "finetuning_task": "rte"}),
    ("wav2vec2", {"mask_time_prob": 0.1, "apply_spec_augment": False, "layerdrop": 0.0, "ctc_loss_reduction": "mean"}),
    ("gemma3", {"text_config": {"dtype": "float32", "attention_dropout": 0.1}}),
    ("clip", {"text_config": {"initializer_range": 0.5}, "vision_config": {"dropout": 0.1}}),
    ("mine", {"torch_dtype": "float32", "max_steps": 7, "hidden_dropout": 0.2}),
]


def changed(kind: str, key: str, value: object) -> dict:
    """A configuration with one key that is not the default."""
    config: dict = {"model_type": kind}
    inner = config
    *path, last = key.split(".")
    for part in path:
        inner = inner.setdefault(part, {})
    inner[last] = value
    return config


def complete(kind: str) -> dict:
    """The configuration of a class as transformers saves it."""
    return json.loads(CONFIG_MAPPING[kind]().to_json_string(use_diff=False)) if kind != "mine" else {"model_type": kind}


@pytest.mark.parametrize(("kind", "key", "value"), FUNCTION)
def test_a_key_that_changes_the_function_is_found(kind, key, value):
    other = changed(kind, key, value)
    for base in ({"model_type": kind}, complete(kind)):
        found = differences(base, other)
        assert found, "the model has another function"
        assert differences(other, base), "and so has the base"
    assert not differences(other, other)


@pytest.mark.parametrize(("kind", "keys"), NOTHING)
def test_a_key_without_an_effect_is_not(kind, keys):
    for base in ({"model_type": kind}, complete(kind)):
        assert differences(base, {"model_type": kind, **keys}) == []
        assert differences({"model_type": kind, **keys}, base) == []


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral", "gpt_neox"]
)
def test_what_transformers_saves_is_equal_to_what_it_read(kind):
    small, all_keys = (json.loads(CONFIG_MAPPING[kind]().to_json_string(use_diff=diff)) for diff in (True, False))
    assert differences(small, all_keys) == []
    assert differences({"model_type": kind}, small) == []


@pytest.mark.parametrize(
    "scaling", [{"type": "linear", "factor": 2.0}, LLAMA3, YARN, {"type": "dynamic", "factor": 2.0}]
)
@pytest.mark.parametrize("kind", ["llama", "mine"])
def test_old_and_new_names_of_rotary_embeddings(kind, scaling):
    old = {"model_type": kind, "rope_theta": 5e5, "rope_scaling": scaling, "max_position_embeddings": 128}
    kept = {key: value for key, value in scaling.items() if key != "type"}
    parameters = {**kept, "rope_type": scaling.get("rope_type") or scaling["type"], "rope_theta": 500000}
    new = {"model_type": kind, "rope_parameters": parameters, "max_position_embeddings": 128}
    assert differences(old, new) == differences(new, old) == []
    other = {**new, "rope_parameters": {**parameters, "factor": 16.0}}
    assert [key for key, *_ in differences(old, other)] == ["rope_parameters.factor"]
    theta = {**new, "rope_parameters": {**parameters, "rope_theta": 1e4}}
    assert differences(old, theta) == [("rope_parameters.rope_theta", 1e4, 5e5)]


def test_positions_count_if_the_rotary_embedding_computes_with_them():
    base = {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64}
    assert differences(base, {**base, "max_position_embeddings": 128})
    fixed = {**base, "rope_scaling": YARN}
    assert differences(fixed, {**fixed, "max_position_embeddings": 128}) == []


def test_without_the_model_class_a_telling_key_of_one_file_counts():
    base = {"model_type": "mine", "hidden_size": 8}
    assert differences(base, {**base, "sliding_window": 128}) == [("sliding_window", 128, None)]
    assert differences(base, {**base, "note": "trained at night", "sliding_window": None}) == []
    assert differences(base, {**base, "hidden_size": 9}) == [("hidden_size", 9, 8)]


def test_models_of_another_function_are_refused(tmp_path):
    base, folders, weights, models = family(tmp_path, 2)
    save(base, weights, config={**CONFIG, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}})
    save(folders[0], models[0], config={**CONFIG, "rope_theta": 10000})
    assert fuse_checkpoints(base, folders, tmp_path / "out").notes == []
    save(folders[1], models[1], config={**CONFIG, "rope_theta": 1e6, "hidden_act": "gelu"})
    words = (
        "m1 has another architecture: hidden_act is 'gelu', in the base 'silu'; rope_parameters.rope_theta is 1000000.0"
    )
    refuse(tmp_path / "no", FusionError, words, base, folders)
