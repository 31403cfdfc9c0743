"""Compare the configurations of checkpoints: equal tensors compute different functions under different configurations.

Every key counts, in nested configurations too, except those that change only the training, the generation of text, the
labels, the numerical type or the machine. What the tensors show anyway is left to their names and shapes: the number
of layers, of labels and of tokens, and whether the output head is tied.

A key that is missing has the default of the model's class, which transformers completes. So the files of different
versions can be compared: ``rope_theta`` and ``rope_scaling`` of earlier ones are ``rope_parameters`` of later ones. If
transformers does not have the class, the keys of both files are compared as they are.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

__all__ = ["Difference", "differences"]

Difference = tuple[str, Any, Any]
"""A key, its value in the model, and its value in the base; None if it is missing."""

# Description, training, generation, execution, and what the tensors show. The dropouts that are left compute always.
_IRRELEVANT = re.compile(
    r"(?!(moe_)?token_dropout|drop_vision_last_layer)(_?name_or_path|.*version|architectures?|auto_map|id2label|label2id|num_labels|label_names|problem_type"
    r"|finetuning_task|task_specific_params|tokenizer_class|quantization_config|processor_class|language|license"
    r"|.*drop(out|path|_path|_rate|_prob)?(_.*)?|.*pdrop|.*layerdrop|init(ializer)?_.*|.*_initializer_range|init"
    r"|.*loss.*|.*_cost|eos_coefficient|label_smoothing.*|router_jitter_noise|mask_(time|feature)_.*"
    r"|apply_spec_augment|gradient_checkpointing.*|freeze_.*"
    r"|(bos|eos|pad|sep|cls|mask|unk|decoder_start|forced_bos|forced_eos)_token_id|(begin_)?suppress_tokens"
    r"|(max|min)_(new_tokens|length)|do_sample|early_stopping|num_beams|num_beam_groups|num_return_sequences|prefix"
    r"|temperature|top_[kp]|typical_p|(repetition|length|diversity|exponential_decay_length)_penalty"
    r"|(encoder_)?no_repeat_ngram_size|bad_words_ids|remove_invalid_values|return_dict.*|use_return_dict"
    r"|use_cache|output_(attentions|hidden_states|router_logits|scores|past)|num_logits_to_keep|torchscript"
    r"|(torch_|compute_|params_)?dtype|use_bfloat16|bf16|fp16|fp32|use_half_precision|pretraining_tp"
    r"|_?(attn|experts)_implementation.*|attn_impl|_?use_?flash_?att.*|_flash_attn.*|init_device|disable_custom_kernels"
    r"|chunk_size_feed_forward|use_kernel.*|use_mamba_kernels|unsloth.*|transformers\.js_config|use_exllama"
    r"|num_hidden_layers|n_layers?|num_layers|(padded_)?vocab_size.*|tie_(word_embeddings|encoder_decoder))"
)
# The number of positions; a table of positions has it as its shape, and only some rotary embeddings compute with it.
_POSITIONS = re.compile(
    r"max_position_embeddings|n_positions|n_ctx|max_seq(uence)?_len(gth)?|seq_length|model_max_length"
    r"|tokenizer_model_max_length|max_length|context_length"
)
# A key of these words changes the function, even if only one of two files has it.
_TELLING = re.compile(
    r"rope|rotary|window|head|norm|(^|_)eps|(^|_)act(_|$)|activation|scal|soft_?cap|alibi|causal|position_embedding_type"
    r"|bias|experts|topk|layer_types|multiplier|is_decoder|parallel|residual"
)
_ROTARY = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
_BY_LENGTH = ("dynamic", "longrope", "su", "yarn", "llama3")
# Models that count positions from the id of the padding token.
_PADDED = re.compile(
    r".*roberta.*|camembert|data2vec-text|esm|ibert|xmod|longformer|luke|mluke|mpnet|layoutlmv3|lilt|markuplm"
    r"|m2m_100|nllb.*|xglm|speech_to_text|trocr|fsmt"
)
# Models that pool at the position of the end token.
_ENDED = re.compile(r"(alt|x)?clip.*|owlv.*|groupvit.*")


def differences(base: Mapping[str, Any], model: Mapping[str, Any]) -> list[Difference]:
    """Return the keys in which two configurations define different functions; those that a file contains first.

    >>> base = {"model_type": "mine", "rope_theta": 10000.0, "torch_dtype": "bfloat16"}
    >>> differences(base, {"model_type": "mine", "rope_parameters": {"rope_theta": 10000, "rope_type": "default"}})
    []
    >>> differences(base, {"model_type": "mine", "rope_theta": 500000.0})
    [('rope_parameters.rope_theta', 500000.0, 10000.0)]
    """
    if not base or not model:
        return []
    kinds = (base.get("model_type"), model.get("model_type"))
    if kinds[0] is not None and kinds[1] is not None and kinds[0] != kinds[1]:
        return [("model_type", kinds[1], kinds[0])]
    if dict(_flat(_canonical(base))) == dict(_flat(_canonical(model))):
        return []
    known = _defaults(kinds[0])  # transformers takes a second to import, so only now
    ours, theirs = (_completed(config) for config in (base, model))
    if known is None or ours is None or theirs is None:
        return [one for one in _compared(base, model, None) if _decides(one)]
    stated = dict(_flat(_canonical(base))).keys() | dict(_flat(_canonical(model))).keys()
    return sorted(_compared(ours, theirs, known), key=lambda one: (one[0] not in stated, one[0]))


def _compared(
    base: Mapping[str, Any], model: Mapping[str, Any], known: Mapping[str, Any] | None
) -> Iterator[Difference]:
    """Yield what differs; keys that the model's class does not have count only if their names are telling."""
    ours, theirs = dict(_flat(_canonical(base))), dict(_flat(_canonical(model)))
    for key in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(key), theirs.get(key)
        if _equal(one, other) or _of_other_depth(key, one, other):
            continue
        if known is not None and key.endswith("partial_rotary_factor") and {one, other} == {None, 1}:
            continue  # the default of all classes that do not state another
        if known is None or _has(known, key) or _TELLING.search(key.rpartition(".")[2]):
            yield key, other, one


def _decides(found: Difference) -> bool:
    """Whether a difference counts if no class says what a missing key means."""
    key, theirs, ours = found
    both = theirs is not None and ours is not None
    return both or bool(_TELLING.search(key.rpartition(".")[2]))


def _equal(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return all(value is None or value is False or value == [] for value in (one, other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (one, other))
    return math.isclose(one, other, rel_tol=1e-6) if numbers else bool(one == other)


def _of_other_depth(key: str, one: Any, other: Any) -> bool:
    """Whether two lists of layers have another length but agree in the layers of both."""
    if not key.endswith("layer_types") or not isinstance(one, list) or not isinstance(other, list):
        return False
    return len(one) != len(other) and all(a == b for a, b in zip(one, other, strict=False))


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _canonical(config: Mapping[str, Any], outer: str = "") -> dict[str, Any]:
    """Return what counts of a configuration, with rotary embeddings as ``rope_parameters``.

    Args:
        config: the configuration.
        outer: the type of the model that it is a part of.
    """
    kind = str(config.get("model_type") or outer)
    kept = {
        str(key): _canonical(value, kind) if isinstance(value, Mapping) and key not in _ROTARY else value
        for key, value in config.items()
        if not _IRRELEVANT.fullmatch(str(key)) and not _POSITIONS.fullmatch(str(key))
    }
    if _PADDED.fullmatch(kind):
        kept["pad_token_id"] = config.get("pad_token_id")
    if _ENDED.fullmatch(kind):
        kept["eos_token_id"] = config.get("eos_token_id")
    if kept.get("use_sliding_window") is False:
        kept["sliding_window"] = None
    if kept.get("sliding_window", 0) is None:  # then these have no effect
        kept = {key: v for key, v in kept.items() if key not in ("use_sliding_window", "max_window_layers")}
    rotary = {key: kept.pop(key, None) for key in _ROTARY}
    rotary = {key: value for key, value in rotary.items() if value is not None}
    return kept | ({"rope_parameters": _rotary(rotary, config)} if rotary else {})


def _rotary(keys: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the rotary embeddings, or a mapping of them by type of layer."""
    given = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        return {"rope_type": given}
    common = {key: keys[key] for key in ("rope_theta", "partial_rotary_factor") if key in keys}
    if given and all(isinstance(value, Mapping) or value is None for value in given.values()):
        return {str(kind): _one_rotary({**common, **(value or {})}, config) for kind, value in given.items()}
    return _one_rotary({**common, **given}, config)


def _one_rotary(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    kind = given.get("rope_type") or given.get("type") or "default"
    rotary = {str(key): value for key, value in given.items() if key != "type"} | {"rope_type": kind}
    if kind in _BY_LENGTH and not (rotary.get("factor") and rotary.get("original_max_position_embeddings")):
        rotary["max_position_embeddings"] = config.get("max_position_embeddings")
    return rotary


def _has(known: Mapping[str, Any], key: str) -> bool:
    """Whether the class has a key: nested ones are looked up in the nested defaults."""
    inner: Any = known
    for part in key.split("."):
        if not isinstance(inner, Mapping) or part == "rope_parameters":
            return True
        if part not in inner:
            return False
        inner = inner[part]
    return True


def _defaults(kind: Any) -> Mapping[str, Any] | None:
    """Return the defaults of a model's class; None if transformers does not have it."""
    return _completed({"model_type": kind})


def _completed(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a configuration with the defaults of its class; None if transformers cannot read it."""
    try:
        from transformers import CONFIG_MAPPING  # deferred: it takes a second to import
        from transformers.utils.logging import get_verbosity, set_verbosity
    except ImportError:
        return None
    verbosity = get_verbosity()
    set_verbosity(logging.CRITICAL)  # it comments on values that are not compared here
    try:
        complete: Mapping[str, Any] = CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(dict(config))).to_dict()
    except Exception:  # a class may raise anything on values that it does not expect
        return None
    finally:
        set_verbosity(verbosity)
    return complete
